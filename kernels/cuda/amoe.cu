// Every kernel of amoe, compiled into one fatbin by `cargo xtask kernels`.
#include "attention.cuh"
#include "attention_latent.cuh"
#include "exact.cuh"
#include "ffn_portable.cuh"
#include "heads.cuh"
#include "kv.cuh"
#include "latent.cuh"
#include "norm.cuh"
#include "probe.cuh"
#include "router.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "ffn_hopper.cuh"
#endif
