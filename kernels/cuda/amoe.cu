// Every kernel of amoe, compiled into one fatbin by `cargo xtask kernels`.
#include "ptx.cuh"

#include "ffn_portable.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "ffn_hopper.cuh"
#endif
