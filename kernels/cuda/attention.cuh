// Decode attention over the paged cache of kv.cuh: one query token a row, heads share keys in groups.
//
// A sequence is cut into stretches of 512 positions from its start, whatever its length or its batch. A block
// does one stretch of one KV head for all query heads of its group; each of its four warps takes every fourth KV
// block with a softmax of its own, and warps, then stretches, are merged in order. So a row's bits depend on
// its own keys alone.
#pragma once

#include "kv.cuh"

/// Mirrors `cuda::attention::AttendParams` in Rust.
struct AttendParams {
    const bf16 *query;       // [rows, heads, dim]
    const bf16 *keys;
    const bf16 *values;
    const uint32_t *blocks;  // [rows, most_blocks] the sequence's KV blocks
    const uint32_t *length;  // [rows] positions to attend to, at least 1
    float *part;             // [rows, heads, stretches, dim + 2] sums, then largest score and sum of weights
    bf16 *out;               // [rows, heads, dim]
    uint32_t heads;
    uint32_t kv_heads;       // heads / kv_heads is at most 16
    uint32_t most_blocks;
    uint32_t stretches;      // of the longest row
    float scale;             // of scores, log2(e) included
};

namespace attention {

constexpr uint32_t THREADS = 128;
constexpr uint32_t WARPS = THREADS / 32;
constexpr uint32_t STRETCH_BLOCKS = 16;
constexpr uint32_t STRETCH = STRETCH_BLOCKS * KV_BLOCK;
constexpr uint32_t HEADS = 16;  // query heads of a group, padded

template <uint32_t DIM> struct Shape {
    static constexpr uint32_t CHUNKS = DIM / 8;  // sixteen-byte pieces of a row
    static constexpr uint32_t TILE_BYTES = KV_BLOCK * DIM * 2;
    static constexpr uint32_t WARP_BYTES = 2 * TILE_BYTES;
    static constexpr uint32_t SHARED_BYTES = WARPS * WARP_BYTES + HEADS * DIM * 2;
    static_assert(WARP_BYTES >= HEADS * (DIM + 2) * 4, "a warp's result takes the place of its tiles");

    DEV static uint32_t spread(uint32_t row, uint32_t chunk) { return row * DIM * 2 + ((chunk ^ (row % 8)) * 16); }
};

/// What a warp knows of its 16 heads: lane holds heads lane / 4 and lane / 4 + 8.
template <uint32_t DIM> struct State {
    float sum[DIM / 8][4] = {};
    float largest[2], weight[2] = {0, 0};
};

/// Copies the first `rows` positions of one KV block of keys or values, and zeros for the rest: nothing that was
/// never written may meet a weight of zero.
template <uint32_t DIM> DEV void fetch(uint32_t to, const bf16 *cache, uint64_t tile, uint32_t rows) {
    typedef Shape<DIM> S;
    const bf16 *from = cache + tile * KV_BLOCK * DIM;
    for (uint32_t i = ptx::thread() % 32; i < KV_BLOCK * S::CHUNKS; i += 32)
        ptx::copy16(to + S::spread(i / S::CHUNKS, i % S::CHUNKS), from + i * 8, i / S::CHUNKS < rows);
    ptx::copy_commit();
}

/// scores[16 heads][32 positions] = query * keys, in log2 units; positions past the end are minus infinity.
template <uint32_t DIM>
DEV void score(float (&scores)[4][4], uint32_t query, uint32_t keys, uint32_t left, float scale) {
    typedef Shape<DIM> S;
    const uint32_t lane = ptx::thread() % 32;
#pragma unroll
    for (uint32_t n = 0; n < 4; n++)
        for (uint32_t i = 0; i < 4; i++) scores[n][i] = 0;
#pragma unroll
    for (uint32_t k = 0; k < DIM / 16; k++) {
        uint32_t a[4];
        ptx::load_tiles(a, query + S::spread(lane % 16, k * 2 + lane / 16));
#pragma unroll
        for (uint32_t n = 0; n < 2; n++) {
            uint32_t b[4];
            ptx::load_tiles(b, keys + S::spread(n * 16 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
            ptx::multiply(scores[2 * n], a, b[0], b[1]);
            ptx::multiply(scores[2 * n + 1], a, b[2], b[3]);
        }
    }
#pragma unroll
    for (uint32_t n = 0; n < 4; n++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const bool inside = n * 8 + lane % 4 * 2 + i % 2 < left;
            scores[n][i] = inside ? scores[n][i] * scale : -ptx::from_bits(0x7f800000u);
        }
}

/// Turns scores into weights against the largest so far and rescales what was summed before.
template <uint32_t DIM> DEV void soften(State<DIM> &state, float (&scores)[4][4]) {
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        float largest = state.largest[half];
#pragma unroll
        for (uint32_t n = 0; n < 4; n++)
            for (uint32_t i = 2 * half; i < 2 * half + 2; i++)
                largest = scores[n][i] > largest ? scores[n][i] : largest;
        for (uint32_t mask = 1; mask < 4; mask *= 2) {
            const float other = ptx::shuffle_xor(largest, mask);
            largest = other > largest ? other : largest;
        }
        const float rescale = ptx::exp2(state.largest[half] - largest);
        float weight = 0;
#pragma unroll
        for (uint32_t n = 0; n < 4; n++)
            for (uint32_t i = 2 * half; i < 2 * half + 2; i++) {
                scores[n][i] = ptx::exp2(scores[n][i] - largest);
                weight += scores[n][i];
            }
        for (uint32_t mask = 1; mask < 4; mask *= 2) weight += ptx::shuffle_xor(weight, mask);
        state.weight[half] = state.weight[half] * rescale + weight;
        state.largest[half] = largest;
#pragma unroll
        for (uint32_t d = 0; d < DIM / 8; d++) {
            state.sum[d][2 * half] *= rescale;
            state.sum[d][2 * half + 1] *= rescale;
        }
    }
}

/// sum[16 heads][dim] += weights * values.
template <uint32_t DIM> DEV void gather(State<DIM> &state, const float (&weights)[4][4], uint32_t values) {
    typedef Shape<DIM> S;
    const uint32_t lane = ptx::thread() % 32;
#pragma unroll
    for (uint32_t k = 0; k < 2; k++) {
        const float(&first)[4] = weights[2 * k], (&second)[4] = weights[2 * k + 1];
        const uint32_t a[4] = {ptx::pack_bf16(first[0], first[1]), ptx::pack_bf16(first[2], first[3]),
                               ptx::pack_bf16(second[0], second[1]), ptx::pack_bf16(second[2], second[3])};
#pragma unroll
        for (uint32_t d = 0; d < DIM / 16; d++) {
            uint32_t b[4];
            const uint32_t position = k * 16 + lane / 8 % 2 * 8 + lane % 8;
            ptx::load_tiles_transposed(b, values + S::spread(position, d * 2 + lane / 16));
            ptx::multiply(state.sum[2 * d], a, b[0], b[1]);
            ptx::multiply(state.sum[2 * d + 1], a, b[2], b[3]);
        }
    }
}

/// A warp's share of a stretch. Keys of the next block travel while values are multiplied, and the other way.
template <uint32_t DIM>
DEV void run_warp(const AttendParams &p, uint64_t row, uint32_t kv_head, uint32_t query, State<DIM> &state) {
    const uint32_t warp = ptx::thread() / 32, stretch = ptx::block();
    const uint32_t keys = ptx::address(ptx::shared()) + warp * Shape<DIM>::WARP_BYTES;
    const uint32_t values = keys + Shape<DIM>::TILE_BYTES;
    const uint32_t length = p.length[row], all = (length + KV_BLOCK - 1) / KV_BLOCK;
    const uint32_t first = stretch * STRETCH_BLOCKS, end = all < first + STRETCH_BLOCKS ? all : first + STRETCH_BLOCKS;
    const uint32_t *blocks = p.blocks + row * p.most_blocks;
    state.largest[0] = state.largest[1] = -1e30f;  // finite: a block of nothing but padding stays a number
    uint32_t block = first + warp;
    if (block < end) {
        const uint64_t tile = (uint64_t)blocks[block] * p.kv_heads + kv_head;
        fetch<DIM>(keys, p.keys, tile, length - block * KV_BLOCK);
        fetch<DIM>(values, p.values, tile, length - block * KV_BLOCK);
    }
    for (; block < end; block += WARPS) {
        const uint32_t next = block + WARPS;
        const uint64_t tile = next < end ? (uint64_t)blocks[next] * p.kv_heads + kv_head : 0;
        float scores[4][4];
        ptx::copy_wait<1>();
        ptx::sync_warp();
        score<DIM>(scores, query, keys, length - block * KV_BLOCK, p.scale);
        ptx::sync_warp();
        if (next < end) fetch<DIM>(keys, p.keys, tile, length - next * KV_BLOCK);
        else ptx::copy_commit();
        soften<DIM>(state, scores);
        ptx::copy_wait<1>();
        ptx::sync_warp();
        gather<DIM>(state, scores, values);
        ptx::sync_warp();
        if (next < end) fetch<DIM>(values, p.values, tile, length - next * KV_BLOCK);
        else ptx::copy_commit();
    }
}

/// A warp's result, in the place of its tiles: [16 heads][DIM sums, largest, weight].
template <uint32_t DIM> DEV float *result(uint32_t warp) {
    return (float *)(ptx::shared() + warp * Shape<DIM>::WARP_BYTES);
}

template <uint32_t DIM> DEV void lay_down(const State<DIM> &state) {
    const uint32_t lane = ptx::thread() % 32;
    float *to = result<DIM>(ptx::thread() / 32);
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        float *head = to + (lane / 4 + half * 8) * (DIM + 2);
#pragma unroll
        for (uint32_t d = 0; d < DIM / 8; d++) {
            head[d * 8 + lane % 4 * 2] = state.sum[d][2 * half];
            head[d * 8 + lane % 4 * 2 + 1] = state.sum[d][2 * half + 1];
        }
        head[DIM] = state.largest[half];
        head[DIM + 1] = state.weight[half];
    }
}

/// Merges `count` partial results that lie `stride` floats apart, in order, for one dim of a head.
struct Merged {
    float sum = 0, largest = -1e30f, weight = 0;

    DEV Merged(const float *part, uint32_t stride, uint32_t count, uint32_t dim, uint32_t dims) {
        for (uint32_t i = 0; i < count; i++) {
            const float other = part[i * stride + dims];
            largest = other > largest ? other : largest;
        }
        for (uint32_t i = 0; i < count; i++) {
            const float scale = ptx::exp2(part[i * stride + dims] - largest);
            sum += part[i * stride + dim] * scale;
            weight += part[i * stride + dims + 1] * scale;
        }
    }
};

template <uint32_t DIM> DEV void attend_stretch(const AttendParams &p) {
    typedef Shape<DIM> S;
    const uint64_t row = ptx::block_y() / p.kv_heads;
    const uint32_t kv_head = ptx::block_y() % p.kv_heads, group = p.heads / p.kv_heads;
    if (ptx::block() * STRETCH >= p.length[row]) return;
    const uint32_t query = ptx::address(ptx::shared()) + WARPS * S::WARP_BYTES;
    const bf16 *from = p.query + (row * p.heads + kv_head * group) * DIM;
    for (uint32_t i = ptx::thread(); i < HEADS * S::CHUNKS; i += THREADS) {
        const bool valid = i / S::CHUNKS < group;
        ptx::copy16(query + S::spread(i / S::CHUNKS, i % S::CHUNKS), valid ? from + i * 8 : from, valid);
    }
    ptx::copy_commit();
    ptx::copy_wait<0>();
    ptx::sync_block();
    State<DIM> state;
    run_warp<DIM>(p, row, kv_head, query, state);
    ptx::copy_wait<0>();
    ptx::sync_block();
    lay_down<DIM>(state);
    ptx::sync_block();
    for (uint32_t i = ptx::thread(); i < group * DIM; i += THREADS) {
        const uint32_t head = i / DIM, dim = i % DIM;
        const Merged merged(result<DIM>(0) + head * (DIM + 2), S::WARP_BYTES / 4, WARPS, dim, DIM);
        const uint64_t at = (row * p.heads + kv_head * group + head) * p.stretches + ptx::block();
        float *to = p.part + at * (DIM + 2);
        to[dim] = merged.sum;
        if (dim == 0) to[DIM] = merged.largest, to[DIM + 1] = merged.weight;
    }
}

/// One block for each row and head, one thread for each dim.
DEV void merge(const AttendParams &p, uint32_t dims) {
    const uint64_t head = ptx::block();
    const uint32_t count = (p.length[head / p.heads] + STRETCH - 1) / STRETCH;
    const Merged merged(p.part + head * p.stretches * (dims + 2), dims + 2, count, ptx::thread(), dims);
    p.out[head * dims + ptx::thread()] = narrow(ptx::divide(merged.sum, merged.weight));
}

}  // namespace attention

/// Grid: stretches x (rows * kv_heads).
KERNEL(attention::THREADS, 2) attend_128(GRID_CONSTANT AttendParams p) { attention::attend_stretch<128>(p); }
KERNEL(attention::THREADS, 2) attend_64(GRID_CONSTANT AttendParams p) { attention::attend_stretch<64>(p); }
/// Grid: rows * heads; threads: dim.
KERNEL(256, 1) attend_merge(GRID_CONSTANT AttendParams p) { attention::merge(p, ptx::block_threads()); }
