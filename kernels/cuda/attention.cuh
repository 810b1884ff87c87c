// Attention over the paged cache of kv.cuh; heads share keys in groups. A tile is some consecutive positions of a
// sequence, one when it is decoded, and as many as the tensor cores have rows for in a chunk of its prompt.
//
// A sequence is cut into stretches of equal size from its start, whatever its length or its batch. A block
// does one stretch of one KV head for all query heads of its group and all positions of its tile; each of its four
// warps takes every fourth KV block with a softmax of its own, and warps, then stretches, are merged in order. What
// a position may not see counts as nothing, exactly. So a row's bits depend on its own keys alone, and are the same
// whether it was decoded or stood in a chunk.
#pragma once

#include "kv.cuh"

/// Mirrors `cuda::attention::AttendParams` in Rust.
struct AttendParams {
    const bf16 *query;         // [rows, heads, dim]
    const bf16 *keys;
    const bf16 *values;
    const uint32_t *position;  // [rows] in the sequence; a row attends to all up to its own
    const uint32_t *table;     // [rows] where the sequence's KV blocks begin in `blocks`
    const uint32_t *blocks;
    const uint32_t *tile;      // [tiles, 2] first row, and number of rows
    float *part;               // [tiles, tile_rows, heads, stretches, dim + 2] sums, largest score, sum of weights
    bf16 *out;                 // [rows, heads, dim]
    uint32_t heads;
    uint32_t kv_heads;         // heads / kv_heads is at most 16
    uint32_t tile_rows;        // most rows of a tile; with all heads of a group no more than the kernel has
    uint32_t stretches;        // of the longest row
    uint32_t stretch;          // positions of one, a multiple of KV_BLOCK
    float scale;               // of scores, log2(e) included
};

namespace attention {

constexpr uint32_t THREADS = 128;
constexpr uint32_t WARPS = THREADS / 32;

/// M: sixteens of queries, each a position and a head of the group; the heads of a position are neighbours.
template <uint32_t DIM, uint32_t M> struct Shape {
    static constexpr uint32_t QUERIES = 16 * M;
    static constexpr uint32_t CHUNKS = DIM / 8;  // sixteen-byte pieces of a row
    static constexpr uint32_t TILE_BYTES = KV_BLOCK * DIM * 2;
    static constexpr uint32_t RESULT_BYTES = QUERIES * (DIM + 2) * 4;  // lies in the place of a warp's tiles
    static constexpr uint32_t WARP_BYTES = RESULT_BYTES > 2 * TILE_BYTES ? RESULT_BYTES : 2 * TILE_BYTES;
    static constexpr uint32_t SHARED_BYTES = WARPS * WARP_BYTES + QUERIES * DIM * 2;
    static_assert(WARP_BYTES % 128 == 0, "tiles begin where the spread of their rows does");

    /// Eight rows of one chunk meet eight bank groups; two rows of 32 dims lie in one line of the banks.
    DEV static uint32_t spread(uint32_t row, uint32_t chunk) {
        return row * DIM * 2 + ((chunk ^ (DIM == 32 ? row / 2 % 4 : row % 8)) * 16);
    }
};

/// What a warp knows of its queries: of sixteen m, lane holds 16 m + lane / 4 and 8 more.
template <uint32_t DIM, uint32_t M> struct State {
    float sum[M][DIM / 8][4] = {};
    float largest[M][2], weight[M][2] = {};
    uint32_t length[M][2];  // positions that the query sees
};

/// Copies the first `rows` positions of one KV block of keys or values, and zeros for the rest: nothing that was
/// never written may meet a weight of zero. A warp does it, or as many threads as are said.
template <uint32_t DIM, uint32_t THREADS = 32>
DEV void fetch(uint32_t to, const bf16 *cache, uint64_t tile, uint32_t rows) {
    typedef Shape<DIM, 1> S;
    const bf16 *from = cache + tile * KV_BLOCK * DIM;
    for (uint32_t i = ptx::thread() % THREADS; i < KV_BLOCK * S::CHUNKS; i += THREADS)
        ptx::copy16(to + S::spread(i / S::CHUNKS, i % S::CHUNKS), from + i * 8, i / S::CHUNKS < rows);
    ptx::copy_commit();
}

/// scores[queries][32 positions] = query * keys, in log2 units; positions a query does not see are minus infinity.
template <uint32_t DIM, uint32_t M>
DEV void score(float (&scores)[M][4][4], const State<DIM, M> &state, uint32_t query, uint32_t keys, uint32_t first,
               float scale) {
    typedef Shape<DIM, M> S;
    const uint32_t lane = ptx::thread() % 32;
#pragma unroll
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t i = 0; i < 16; i++) scores[m][i / 4][i % 4] = 0;
#pragma unroll
    for (uint32_t k = 0; k < DIM / 16; k++) {
        uint32_t a[M][4];
#pragma unroll
        for (uint32_t m = 0; m < M; m++) ptx::load_tiles(a[m], query + S::spread(m * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
        for (uint32_t n = 0; n < 2; n++) {
            uint32_t b[4];
            ptx::load_tiles(b, keys + S::spread(n * 16 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
#pragma unroll
            for (uint32_t m = 0; m < M; m++) {
                ptx::multiply(scores[m][2 * n], a[m], b[0], b[1]);
                ptx::multiply(scores[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
#pragma unroll
    for (uint32_t m = 0; m < M; m++)
#pragma unroll
        for (uint32_t i = 0; i < 16; i++) {
            const uint32_t n = i / 4, position = first + n * 8 + lane % 4 * 2 + i % 2;
            const bool seen = position < state.length[m][i % 4 / 2];
            scores[m][n][i % 4] = seen ? scores[m][n][i % 4] * scale : -ptx::from_bits(0x7f800000u);
        }
}

/// Turns scores into weights against the largest so far and rescales what was summed before.
template <uint32_t DIM, uint32_t M> DEV void soften(State<DIM, M> &state, float (&scores)[M][4][4]) {
#pragma unroll
    for (uint32_t i = 0; i < 2 * M; i++) {
        const uint32_t m = i / 2, half = i % 2;
        float largest = state.largest[m][half];
#pragma unroll
        for (uint32_t n = 0; n < 4; n++)
            for (uint32_t i = 2 * half; i < 2 * half + 2; i++)
                largest = scores[m][n][i] > largest ? scores[m][n][i] : largest;
        for (uint32_t mask = 1; mask < 4; mask *= 2) {
            const float other = ptx::shuffle_xor(largest, mask);
            largest = other > largest ? other : largest;
        }
        const float rescale = ptx::exp2(state.largest[m][half] - largest);
        float weight = 0;
#pragma unroll
        for (uint32_t n = 0; n < 4; n++)
            for (uint32_t i = 2 * half; i < 2 * half + 2; i++) {
                scores[m][n][i] = ptx::exp2(scores[m][n][i] - largest);
                weight += scores[m][n][i];
            }
        for (uint32_t mask = 1; mask < 4; mask *= 2) weight += ptx::shuffle_xor(weight, mask);
        state.weight[m][half] = state.weight[m][half] * rescale + weight;
        state.largest[m][half] = largest;
#pragma unroll
        for (uint32_t d = 0; d < DIM / 8; d++) {
            state.sum[m][d][2 * half] *= rescale;
            state.sum[m][d][2 * half + 1] *= rescale;
        }
    }
}

/// sum[queries][dim] += weights * values.
template <uint32_t DIM, uint32_t M>
DEV void gather(State<DIM, M> &state, const float (&weights)[M][4][4], uint32_t values) {
    typedef Shape<DIM, M> S;
    const uint32_t lane = ptx::thread() % 32;
#pragma unroll
    for (uint32_t k = 0; k < 2; k++) {
        uint32_t a[M][4];
#pragma unroll
        for (uint32_t m = 0; m < M; m++)
#pragma unroll
            for (uint32_t i = 0; i < 4; i++)
                a[m][i] = ptx::pack_bf16(weights[m][2 * k + i / 2][i % 2 * 2], weights[m][2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (uint32_t d = 0; d < DIM / 16; d++) {
            uint32_t b[4];
            const uint32_t position = k * 16 + lane / 8 % 2 * 8 + lane % 8;
            ptx::load_tiles_transposed(b, values + S::spread(position, d * 2 + lane / 16));
#pragma unroll
            for (uint32_t m = 0; m < M; m++) {
                ptx::multiply(state.sum[m][2 * d], a[m], b[0], b[1]);
                ptx::multiply(state.sum[m][2 * d + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/// Some rows of a batch: consecutive positions of a sequence.
struct Tile {
    uint32_t first, count, length;  // length: positions that the last row sees
    const uint32_t *blocks;

    DEV Tile(const AttendParams &p, uint32_t tile)
        : first(p.tile[2 * tile]), count(p.tile[2 * tile + 1]), length(p.position[first] + count),
          blocks(p.blocks + p.table[first]) {}

    /// Positions that the row of a query sees.
    DEV uint32_t length_of(uint32_t query, uint32_t group) const {
        const uint32_t behind = query / group + 1;
        return behind < count ? length - count + behind : length;
    }

    /// Behind the last KV block of this thread block's stretch.
    DEV uint32_t end(const AttendParams &p) const {
        const uint32_t stretch = (ptx::block() + 1) * p.stretch;
        return ((stretch < length ? stretch : length) + KV_BLOCK - 1) / KV_BLOCK;
    }

    /// Where the result of a query of a KV head and this thread block's stretch goes.
    DEV float *part(const AttendParams &p, uint32_t tile, uint32_t kv_head, uint32_t query, uint32_t dims) const {
        const uint32_t group = p.heads / p.kv_heads;
        const uint64_t row = (uint64_t)tile * p.tile_rows + query / group;
        const uint64_t head = row * p.heads + kv_head * group + query % group;
        return p.part + (head * p.stretches + ptx::block()) * (dims + 2);
    }
};

/// A warp's share of a stretch. Keys of the next block travel while values are multiplied, and the other way.
template <uint32_t DIM, uint32_t M>
DEV void run_warp(const AttendParams &p, const Tile &tile, uint32_t kv_head, uint32_t query, State<DIM, M> &state) {
    typedef Shape<DIM, M> S;
    const uint32_t warp = ptx::thread() / 32, lane = ptx::thread() % 32, group = p.heads / p.kv_heads;
    const uint32_t keys = ptx::address(ptx::shared()) + warp * S::WARP_BYTES, values = keys + S::TILE_BYTES;
    const uint32_t first = ptx::block() * p.stretch / KV_BLOCK, end = tile.end(p);
#pragma unroll
    for (uint32_t i = 0; i < 2 * M; i++) {
        state.largest[i / 2][i % 2] = -1e30f;  // finite: a block of nothing to be seen stays a number
        state.length[i / 2][i % 2] = tile.length_of(i * 8 + lane / 4, group);
    }
    uint32_t block = first + warp;
    if (block < end) {
        const uint64_t at = (uint64_t)tile.blocks[block] * p.kv_heads + kv_head;
        fetch<DIM>(keys, p.keys, at, tile.length - block * KV_BLOCK);
        fetch<DIM>(values, p.values, at, tile.length - block * KV_BLOCK);
    }
    for (; block < end; block += WARPS) {
        const uint32_t next = block + WARPS;
        const uint64_t at = next < end ? (uint64_t)tile.blocks[next] * p.kv_heads + kv_head : 0;
        float scores[M][4][4];
        ptx::copy_wait<1>();
        ptx::sync_warp();
        score<DIM, M>(scores, state, query, keys, block * KV_BLOCK, p.scale);
        ptx::sync_warp();
        if (next < end) fetch<DIM>(keys, p.keys, at, tile.length - next * KV_BLOCK);
        else ptx::copy_commit();
        soften<DIM, M>(state, scores);
        ptx::copy_wait<1>();
        ptx::sync_warp();
        gather<DIM, M>(state, scores, values);
        ptx::sync_warp();
        if (next < end) fetch<DIM>(values, p.values, at, tile.length - next * KV_BLOCK);
        else ptx::copy_commit();
    }
}

/// A warp's result, in the place of its tiles: [queries][DIM sums, largest, weight].
template <uint32_t DIM, uint32_t M> DEV float *result(uint32_t warp) {
    return (float *)(ptx::shared() + warp * Shape<DIM, M>::WARP_BYTES);
}

template <uint32_t DIM, uint32_t M> DEV void lay_down(const State<DIM, M> &state) {
    const uint32_t lane = ptx::thread() % 32;
    float *to = result<DIM, M>(ptx::thread() / 32);
#pragma unroll
    for (uint32_t i = 0; i < 2 * M; i++) {
        const uint32_t m = i / 2, half = i % 2;
        float *query = to + (i * 8 + lane / 4) * (DIM + 2);
#pragma unroll
        for (uint32_t d = 0; d < DIM / 8; d++) {
            query[d * 8 + lane % 4 * 2] = state.sum[m][d][2 * half];
            query[d * 8 + lane % 4 * 2 + 1] = state.sum[m][d][2 * half + 1];
        }
        query[DIM] = state.largest[m][half];
        query[DIM + 1] = state.weight[m][half];
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

/// Copies the tile's queries of a group to shared memory, and zeros behind them.
template <uint32_t DIM, uint32_t M, uint32_t THREADS>
DEV void fetch_queries(const AttendParams &p, const Tile &tile, uint32_t kv_head, uint32_t to) {
    typedef Shape<DIM, M> S;
    const uint32_t group = p.heads / p.kv_heads;
    for (uint32_t i = ptx::thread(); i < S::QUERIES * S::CHUNKS; i += THREADS) {
        const uint32_t query = i / S::CHUNKS, chunk = i % S::CHUNKS;
        const bool valid = query < tile.count * group;
        const uint64_t head = (uint64_t)(tile.first + query / group) * p.heads + kv_head * group + query % group;
        ptx::copy16(to + S::spread(query, chunk), valid ? p.query + head * DIM + chunk * 8 : p.query, valid);
    }
    ptx::copy_commit();
    ptx::copy_wait<0>();
}

template <uint32_t DIM, uint32_t M> DEV void attend_stretch(const AttendParams &p) {
    typedef Shape<DIM, M> S;
    const uint32_t index = ptx::block_y() / p.kv_heads, kv_head = ptx::block_y() % p.kv_heads;
    const uint32_t group = p.heads / p.kv_heads, begin = ptx::block() * p.stretch;
    const Tile tile(p, index);
    if (begin >= tile.length) return;
    const uint32_t queries = ptx::address(ptx::shared()) + WARPS * S::WARP_BYTES;
    fetch_queries<DIM, M, THREADS>(p, tile, kv_head, queries);
    ptx::sync_block();
    State<DIM, M> state;
    run_warp<DIM, M>(p, tile, kv_head, queries, state);
    ptx::copy_wait<0>();
    ptx::sync_block();
    lay_down<DIM, M>(state);
    ptx::sync_block();
    for (uint32_t i = ptx::thread(); i < tile.count * group * DIM; i += THREADS) {
        const uint32_t query = i / DIM, dim = i % DIM;
        if (begin >= tile.length_of(query, group)) continue;
        const Merged merged(result<DIM, M>(0) + query * (DIM + 2), S::WARP_BYTES / 4, WARPS, dim, DIM);
        float *to = tile.part(p, index, kv_head, query, DIM);
        to[dim] = merged.sum;
        if (dim == 0) to[DIM] = merged.largest, to[DIM + 1] = merged.weight;
    }
}

/// One block for each tile, row of it and head, one thread for each dim.
DEV void merge(const AttendParams &p, uint32_t dims) {
    const uint64_t head = ptx::block();
    const uint32_t place = head / p.heads % p.tile_rows;
    const Tile tile(p, head / p.heads / p.tile_rows);
    if (place >= tile.count) return;
    const uint32_t count = (tile.length_of(place, 1) + p.stretch - 1) / p.stretch;
    const Merged merged(p.part + head * p.stretches * (dims + 2), dims + 2, count, ptx::thread(), dims);
    const uint64_t to = (uint64_t)(tile.first + place) * p.heads + head % p.heads;
    p.out[to * dims + ptx::thread()] = narrow(ptx::divide(merged.sum, merged.weight));
}

}  // namespace attention

/// Grid: stretches x (tiles * kv_heads). A decoded position fills its sixteen queries as far as its group goes; a chunk
/// fills all of them.
KERNEL(attention::THREADS, 2) attend_128(GRID_CONSTANT AttendParams p) { attention::attend_stretch<128, 1>(p); }
KERNEL(attention::THREADS, 2) attend_64(GRID_CONSTANT AttendParams p) { attention::attend_stretch<64, 1>(p); }
KERNEL(attention::THREADS, 2) attend_32(GRID_CONSTANT AttendParams p) { attention::attend_stretch<32, 1>(p); }
KERNEL(attention::THREADS, 2) attend_chunk_128(GRID_CONSTANT AttendParams p) { attention::attend_stretch<128, 2>(p); }
KERNEL(attention::THREADS, 2) attend_chunk_64(GRID_CONSTANT AttendParams p) { attention::attend_stretch<64, 2>(p); }
KERNEL(attention::THREADS, 2) attend_chunk_32(GRID_CONSTANT AttendParams p) { attention::attend_stretch<32, 2>(p); }
/// Grid: tiles * tile_rows * heads; threads: dim.
KERNEL(512, 1) attend_merge(GRID_CONSTANT AttendParams p) { attention::merge(p, ptx::block_threads()); }
