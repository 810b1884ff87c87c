// A product with a matrix for each head, on the tiles of ffn_portable.cuh: latent attention takes its queries into the
// space of the compressed keys with it, and what the heads saw there back out.
#pragma once

#include "ffn_portable.cuh"

/// Mirrors `cuda::heads::Params` in Rust. A row's part of a head begins at row * `_row` + head * `_head`.
struct HeadsParams {
    const bf16 *x;
    const bf16 *weights;  // [heads, features, inner]
    bf16 *out;
    uint32_t rows;
    uint32_t features;    // a multiple of 8, as all that follow
    uint32_t inner;
    uint32_t x_row;
    uint32_t x_head;
    uint32_t out_row;
    uint32_t out_head;
};

/// out[row][head] = weights[head] * x[row][head]. Grid: slices of 128 features times slices of 64 rows, x heads; an
/// element is summed over k in one order, whatever the batch.
KERNEL(portable::THREADS, 2) head_product(GRID_CONSTANT HeadsParams p) {
    using namespace portable;
    const uint32_t tiles = ceil_div(p.rows, WIDTH), head = ptx::block_y();
    const uint32_t m = ptx::block() / tiles * 128, first = ptx::block() % tiles * WIDTH;
    const uint32_t count = p.rows - first < WIDTH ? p.rows - first : WIDTH;
    Copy<Halves> copy;
    copy.take(p.weights + (uint64_t)head * p.features * p.inner, m, p.features - m, p.inner);
    copy.rows = p.x + (uint64_t)first * p.x_row + head * p.x_head;
    copy.stride = p.x_row;
#pragma unroll
    for (uint32_t i = 0; i < ROW_PASSES; i++) copy.row[i] = ptx::thread() / 8 + i * 16;
    Sums sums = {};
    sum_up(sums, copy, Halves(), count, p.inner);
    for_each_sum(sums, count, [](uint32_t row, uint32_t feature, float sum, float second) {
        put(row, feature, sum);
        put(row, 64 + feature, second);
    });
    ptx::sync_block();
    write_out(p.out + (uint64_t)first * p.out_row + head * p.out_head + m, p.out_row, count, 16, p.features - m);
}
