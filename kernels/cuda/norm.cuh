// Adds rows to the residual stream in a fixed order and normalises it for what comes next.
#pragma once

#include "ptx.cuh"

namespace rows {

constexpr uint32_t THREADS = 256;
constexpr uint32_t WARPS = THREADS / 32;

/// Sums over the block in one order: lanes by halving, then warps from the first to the last.
DEV float block_sum(float x) {
    for (uint32_t mask = 16; mask > 0; mask /= 2) x += ptx::shuffle_xor(x, mask);
    float *sums = (float *)ptx::shared();
    if (ptx::thread() % 32 == 0) sums[ptx::thread() / 32] = x;
    ptx::sync_block();
    float total = 0;
    for (uint32_t warp = 0; warp < WARPS; warp++) total += sums[warp];
    return total;
}

}  // namespace rows

/// Mirrors `cuda::rows::AddNormParams` in Rust.
struct AddNormParams {
    float *residual;        // [rows, width]
    const bf16 *terms;      // [any, width]
    const uint32_t *place;  // [rows, count] which terms to add, in this order
    const float *bias;      // [width] to add behind them, or null
    const bf16 *weight;     // [width]
    bf16 *out;              // [rows, width], or null: nothing is normalised
    uint32_t count;         // 0: nothing is added
    uint32_t width;         // a multiple of 8
    float epsilon;
};

/// residual[row] += the row's terms and the bias; out[row] = residual[row] / rms * weight. One block for each row.
KERNEL(rows::THREADS, 1) add_norm(GRID_CONSTANT AddNormParams p) {
    const uint64_t row = ptx::block();
    float *residual = p.residual + row * p.width;
    float squares = 0;
    for (uint32_t at = ptx::thread() * 8; at < p.width; at += rows::THREADS * 8) {
        float x[8];
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) x[i] = residual[at + i];
        for (uint32_t j = 0; j < p.count; j++) {
            const uint64_t term = p.place[row * p.count + j];
            const Eight eight = *(const Eight *)(p.terms + term * p.width + at);
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                x[2 * i] += low(eight.pair[i]);
                x[2 * i + 1] += high(eight.pair[i]);
            }
        }
        if (p.bias)
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) x[i] += p.bias[at + i];
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            residual[at + i] = x[i];
            squares += x[i] * x[i];
        }
    }
    if (!p.out) return;
    const float mean = ptx::divide(rows::block_sum(squares), (float)p.width);
    const float scale = ptx::divide(1.0f, ptx::root(mean + p.epsilon));
    for (uint32_t at = ptx::thread() * 8; at < p.width; at += rows::THREADS * 8) {
        const Eight weight = *(const Eight *)(p.weight + at);
        Eight out;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const float first = residual[at + 2 * i] * scale * low(weight.pair[i]);
            const float second = residual[at + 2 * i + 1] * scale * high(weight.pair[i]);
            out.pair[i] = ptx::pack_bf16(first, second);
        }
        *(Eight *)(p.out + row * p.width + at) = out;
    }
}
