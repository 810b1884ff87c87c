// Warpgroup products d (64xN, f32) += a (64x16) * b (Nx16, transposed), all factors bf16: b in shared memory, K-major with
// the 128-byte swizzle, a too or in registers as ptx::multiply has it. One specialisation for each N; the register lists are
// what the instruction asks for.
#pragma once

#include "ptx.cuh"

/// Describes an operand whose first row is at `address` (1024-byte aligned tile, rows of 128 bytes).
DEV uint64_t operand(uint32_t address) {
    const uint64_t swizzle_128 = 1ull << 62;
    const uint64_t eight_rows = (uint64_t)(1024 >> 4) << 32;
    const uint64_t unused_stride = 1ull << 16;
    return swizzle_128 | eight_rows | unused_stride | ((address & 0x3ffff) >> 4);
}

#ifdef AMOE_EMULATE

template <int N> DEV void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b) { ptx::wgmma<N>(d, a, b); }
template <int N> DEV void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) { ptx::wgmma<N>(d, a, b); }

#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int N> DEV void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b);
template <int N> DEV void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b);

#define ROW8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
                   "+f"(d[i + 6]), "+f"(d[i + 7])

/// `sums` names the registers of d, `left` those of a in registers, `a` and `b` of the descriptors; d follows.
#define PRODUCTS(n, sums, left, b_left, a, b, ...)                                                                 \
    template <> DEV void wgmma<n>(float (&d)[n / 2], uint64_t x, uint64_t y) {                                      \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" sums "}, " a ", " b               \
                     ", 1, 1, 1, 0, 0;"                                                                             \
                     : __VA_ARGS__                                                                                  \
                     : "l"(x), "l"(y));                                                                             \
    }                                                                                                               \
    template <> DEV void wgmma<n>(float (&d)[n / 2], const uint32_t (&x)[4], uint64_t y) {                          \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" sums "}, {" left "}, " b_left     \
                     ", 1, 1, 1, 0;"                                                                                \
                     : __VA_ARGS__                                                                                  \
                     : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(y));                                         \
    }

#define SUMS_4 "%0, %1, %2, %3"
#define SUMS_8 SUMS_4 ", %4, %5, %6, %7"
#define SUMS_16 SUMS_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SUMS_32 SUMS_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SUMS_48 SUMS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define SUMS_64 SUMS_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

PRODUCTS(8, SUMS_4, "%4, %5, %6, %7", "%8", "%4", "%5", "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]))
PRODUCTS(16, SUMS_8, "%8, %9, %10, %11", "%12", "%8", "%9", ROW8(d, 0))
PRODUCTS(32, SUMS_16, "%16, %17, %18, %19", "%20", "%16", "%17", ROW8(d, 0), ROW8(d, 8))
PRODUCTS(64, SUMS_32, "%32, %33, %34, %35", "%36", "%32", "%33", ROW8(d, 0), ROW8(d, 8), ROW8(d, 16), ROW8(d, 24))
PRODUCTS(96, SUMS_48, "%48, %49, %50, %51", "%52", "%48", "%49", ROW8(d, 0), ROW8(d, 8), ROW8(d, 16), ROW8(d, 24), ROW8(d, 32), ROW8(d, 40))
PRODUCTS(128, SUMS_64, "%64, %65, %66, %67", "%68", "%64", "%65", ROW8(d, 0), ROW8(d, 8), ROW8(d, 16), ROW8(d, 24), ROW8(d, 32), ROW8(d, 40), ROW8(d, 48), ROW8(d, 56))

#undef SUMS_4
#undef SUMS_8
#undef SUMS_16
#undef SUMS_32
#undef SUMS_48
#undef SUMS_64
#undef PRODUCTS
#undef ROW8

#endif
