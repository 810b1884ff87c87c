// Products with weights in f32, for the gates: what an expert's choice hangs on is not rounded on the way.
#pragma once

#include "ptx.cuh"

/// Mirrors `cuda::exact::Params` in Rust.
struct ExactParams {
    const bf16 *x;         // [rows, inner]
    const float *weights;  // [features, inner]
    float *out;            // [rows, features]
    uint32_t rows;
    uint32_t features;
    uint32_t inner;        // a multiple of 4
    uint32_t sigmoid;      // of the sums
};

namespace exact {

constexpr uint32_t THREADS = 128;
constexpr uint32_t WARPS = THREADS / 32;
constexpr uint32_t FEATURES = 4;  // of a warp
constexpr uint32_t ROWS = 4;      // of a block

struct alignas(16) Floats {
    float x[4];
};
struct alignas(8) Halves {
    uint32_t pair[2];
};

}  // namespace exact

/// Grid: slices of 16 features x slices of 4 rows. A lane sums every 32nd four of an element, and the lanes are added
/// by halving: one order, whatever the batch.
KERNEL(exact::THREADS, 4) exact_product(GRID_CONSTANT ExactParams p) {
    using namespace exact;
    const uint32_t lane = ptx::thread() % 32, warp = ptx::thread() / 32;
    const uint32_t feature = (ptx::block() * WARPS + warp) * FEATURES, row = ptx::block_y() * ROWS;
    if (feature >= p.features) return;
    float sum[ROWS][FEATURES] = {};
    for (uint32_t k = lane * 4; k < p.inner; k += 128) {
        Floats w[FEATURES];
#pragma unroll
        for (uint32_t f = 0; f < FEATURES; f++)
            if (feature + f < p.features) w[f] = *(const Floats *)(p.weights + (uint64_t)(feature + f) * p.inner + k);
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++) {
            if (row + r >= p.rows) break;
            const Halves h = *(const Halves *)(p.x + (uint64_t)(row + r) * p.inner + k);
            const float x[4] = {low(h.pair[0]), high(h.pair[0]), low(h.pair[1]), high(h.pair[1])};
#pragma unroll
            for (uint32_t f = 0; f < FEATURES; f++)
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) sum[r][f] += x[i] * w[f].x[i];
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < ROWS * FEATURES; i++) {
        const uint32_t r = i / FEATURES, f = i % FEATURES;
        for (uint32_t mask = 16; mask > 0; mask /= 2) sum[r][f] += ptx::shuffle_xor(sum[r][f], mask);
        if (lane != i || row + r >= p.rows || feature + f >= p.features) continue;
        const float value = p.sigmoid ? ptx::divide(1.0f, 1.0f + exponential(-sum[r][f])) : sum[r][f];
        p.out[(uint64_t)(row + r) * p.features + feature + f] = value;
    }
}
