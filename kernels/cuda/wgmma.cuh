// Warpgroup products d (64xN, f32) += a (64x16) * b (Nx16, transposed), both bf16 in shared memory, K-major with
// the 128-byte swizzle. One specialisation for each N; the register lists are what the instruction asks for.
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

#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int N> DEV void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b);

#define ROW8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
                   "+f"(d[i + 6]), "+f"(d[i + 7])

template <> DEV void wgmma<8>(float (&d)[4], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3"
                 "}, %4, %5, 1, 1, 1, 0, 0;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "l"(a), "l"(b));
}

template <> DEV void wgmma<16>(float (&d)[8], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7"
                 "}, %8, %9, 1, 1, 1, 0, 0;"
                 : ROW8(d, 0)
                 : "l"(a), "l"(b));
}

template <> DEV void wgmma<32>(float (&d)[16], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
                 "}, %16, %17, 1, 1, 1, 0, 0;"
                 : ROW8(d, 0), ROW8(d, 8)
                 : "l"(a), "l"(b));
}

template <> DEV void wgmma<64>(float (&d)[32], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
                 "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
                 "}, %32, %33, 1, 1, 1, 0, 0;"
                 : ROW8(d, 0), ROW8(d, 8), ROW8(d, 16), ROW8(d, 24)
                 : "l"(a), "l"(b));
}

template <> DEV void wgmma<96>(float (&d)[48], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
                 "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
                 "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
                 "}, %48, %49, 1, 1, 1, 0, 0;"
                 : ROW8(d, 0), ROW8(d, 8), ROW8(d, 16), ROW8(d, 24), ROW8(d, 32), ROW8(d, 40)
                 : "l"(a), "l"(b));
}

template <> DEV void wgmma<128>(float (&d)[64], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
                 "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
                 "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
                 "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
                 "}, %64, %65, 1, 1, 1, 0, 0;"
                 : ROW8(d, 0), ROW8(d, 8), ROW8(d, 16), ROW8(d, 24), ROW8(d, 32), ROW8(d, 40),
                   ROW8(d, 48), ROW8(d, 56)
                 : "l"(a), "l"(b));
}

#undef ROW8

#endif
