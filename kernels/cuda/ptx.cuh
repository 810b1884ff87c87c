// The instructions the kernels use, one function each; nothing else in this folder holds inline assembly
// but wgmma.cuh. The emulator (emulator/machine.h) provides the same names on a CPU.
#pragma once

#ifdef AMOE_EMULATE
#include "emulator/machine.h"
#else

#include <cuda.h>
#include <stdint.h>

#define DEV __device__ __forceinline__
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define GRID_CONSTANT const __grid_constant__

typedef CUtensorMap TensorMap;

namespace ptx {

DEV uint32_t thread() { return threadIdx.x; }
DEV uint32_t block() { return blockIdx.x; }
DEV uint32_t block_y() { return blockIdx.y; }
DEV uint32_t blocks() { return gridDim.x; }
DEV uint32_t block_threads() { return blockDim.x; }

/// The block's dynamic shared memory.
DEV char *shared() {
    extern __shared__ __align__(1024) char bytes[];
    return bytes;
}
DEV uint32_t address(const void *shared) { return (uint32_t)__cvta_generic_to_shared(shared); }

// ---- Arithmetic -------------------------------------------------------------------------------------

DEV float exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/// Two floats to bf16, round to nearest even; `low` lies in the low half.
DEV uint32_t pack_bf16(float low, float high) {
    uint32_t y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
#if __CUDA_ARCH__ >= 890
/// The values of two E4M3 codes, the first in the low byte.
DEV void widen_fp8(uint32_t codes, float &low, float &high) {
    asm("{\n\t.reg .b32 pair;\n\t.reg .b16 low, high;\n\tcvt.rn.f16x2.e4m3x2 pair, %2;\n\t"
        "mov.b32 {low, high}, pair;\n\tcvt.f32.f16 %0, low;\n\tcvt.f32.f16 %1, high;\n\t}"
        : "=f"(low), "=f"(high)
        : "h"((uint16_t)codes));
}
#endif
DEV float divide(float a, float b) { return __fdiv_rn(a, b); }
DEV float root(float a) { return __fsqrt_rn(a); }
DEV uint32_t bits(float x) { return __float_as_uint(x); }
DEV float from_bits(uint32_t x) { return __uint_as_float(x); }

// ---- Warps and blocks -------------------------------------------------------------------------------

DEV void sync_block() { __syncthreads(); }
DEV void sync_warp() { __syncwarp(); }
/// A barrier of `threads` threads of the block, one of the hardware's sixteen.
DEV void sync_named(uint32_t barrier, uint32_t threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
DEV float shuffle_xor(float x, uint32_t mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DEV uint32_t shuffle_xor(uint32_t x, uint32_t mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DEV float shuffle(float x, uint32_t lane) { return __shfl_sync(0xffffffffu, x, lane); }
DEV uint32_t shuffle(uint32_t x, uint32_t lane) { return __shfl_sync(0xffffffffu, x, lane); }

// ---- Memory order across blocks ---------------------------------------------------------------------

DEV void fence_device() { __threadfence(); }
DEV uint32_t add(uint32_t *counter, uint32_t n) { return atomicAdd(counter, n); }
DEV uint32_t load_acquire(const uint32_t *p) {
    uint32_t x;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
    return x;
}
DEV void pause() { __nanosleep(64); }

// ---- Copies of sixteen bytes by a thread, Ampere and later ----------------------------------------------

/// Copies sixteen bytes to shared memory, or writes zeros when `valid` is false.
DEV void copy16(uint32_t to, const void *from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
}
DEV void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEV void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// ---- Matrix fragments of a warp -----------------------------------------------------------------------

/// Loads four 8x8 tiles of 16-bit values; lane l gives the address of row l % 8 of tile l / 8.
DEV void load_tiles(uint32_t (&r)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}
/// As load_tiles, each tile transposed.
DEV void load_tiles_transposed(uint32_t (&r)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}
/// d += a (16x16) * b (16x8), bf16 in, f32 out.
DEV void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- Hopper: transaction barriers, the tensor copy engine, warpgroups -----------------------------------

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

DEV void barrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// Makes initialised barriers visible to the copy engine.
DEV void fence_barrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory");
}
DEV void barrier_arrive(uint32_t barrier) {
    asm volatile("{\n\t.reg .b64 t;\n\tmbarrier.arrive.shared::cta.b64 t, [%0];\n\t}" ::"r"(barrier) : "memory");
}
/// Arrives and tells the barrier to wait for `bytes` more from the copy engine.
DEV void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("{\n\t.reg .b64 t;\n\tmbarrier.arrive.expect_tx.shared::cta.b64 t, [%0], %1;\n\t}" ::"r"(barrier),
                 "r"(bytes)
                 : "memory");
}
/// Whether the phase of that parity is over.
DEV bool barrier_test(uint32_t barrier, uint32_t parity) {
    uint32_t done;
    asm volatile("{\n\t.reg .pred p;\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return done != 0;
}
DEV void barrier_wait(uint32_t barrier, uint32_t parity) {
    while (!barrier_test(barrier, parity)) {
    }
}
/// Orders this thread's ordinary writes to shared memory before later reads by the tensor cores.
DEV void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

DEV void prefetch(const TensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"((uint64_t)map) : "memory");
}
/// Copies the map's box whose first element is (x, y) to shared memory; `barrier` counts its bytes.
DEV void copy_box(uint32_t to, const TensorMap *map, uint32_t barrier, uint32_t x, uint32_t y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(to),
                 "l"((uint64_t)map), "r"(barrier), "r"(x), "r"(y)
                 : "memory");
}
template <int N> DEV void registers_down() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEV void registers_up() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }

DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> DEV void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

/// Stores two transposed 8x8 tiles of 16-bit values; lane l < 16 gives the address of row l % 8 of tile l / 8.
DEV void store_tiles_transposed(uint32_t row, uint32_t r0, uint32_t r1) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(row), "r"(r0), "r"(r1)
                 : "memory");
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace ptx

#endif  // AMOE_EMULATE

#include "bf16.cuh"
