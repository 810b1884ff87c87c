// Latent attention in its absorbed form (DeepSeek-V2, section 2.1.2) over the paged cache of latent.cuh: all heads share a
// position's one row, RANK compressed elements and TURNED behind them. All of it is their key, and the first RANK
// elements are their value, too.
//
// Tiles, stretches and the merge are those of attention.cuh; what is a KV head there is here a slice of at most 64
// heads. A block has 64 queries, each a position and a head, and eight warps. For every KV block in order they
//   score    16 queries each, and half of the elements of a row
//   soften   eight queries each, four lanes a query: the halves are added and become weights
//   gather   for all queries an eighth of the value's elements
// with the next block's rows on their way. So a row is read once for 64 heads, and a query's bits are the same in
// whatever tile it stands.
#pragma once

#include "attention.cuh"

namespace absorbed {

constexpr uint32_t THREADS = 256;
constexpr uint32_t WARPS = THREADS / 32;
constexpr uint32_t M = 4;  // sixteens of queries
constexpr uint32_t QUERIES = 16 * M;
constexpr uint32_t HALVES = WARPS / M;
constexpr uint32_t TURNED = 64;

/// What lies where in shared memory: queries, two tiles of rows, scores of both halves, what is rescaled by how much.
template <uint32_t RANK> struct Shape {
    static constexpr uint32_t DIM = RANK + TURNED;
    typedef attention::Shape<DIM, M> Rows;
    static constexpr uint32_t STEPS = DIM / 16 / HALVES;  // of a warp, sixteen elements each
    static constexpr uint32_t COLUMNS = RANK / WARPS;     // of a warp's values
    static constexpr uint32_t TILES = QUERIES * DIM * 2;
    static constexpr uint32_t SCORES = TILES + 2 * Rows::TILE_BYTES;
    static constexpr uint32_t HALF_BYTES = QUERIES * KV_BLOCK * 4;
    static constexpr uint32_t RESCALE = SCORES + HALVES * HALF_BYTES;
    static constexpr uint32_t SHARED_BYTES = RESCALE + QUERIES * 4;
    static_assert(DIM % 64 == 0 && COLUMNS % 16 == 0, "rows are whole lines of the banks, warps have whole tiles");
};

/// What four lanes know of their query.
struct Softmax {
    float largest = -1e30f;  // finite: a block of nothing to be seen stays a number
    float weight = 0;
    uint32_t length;         // positions that the query sees
};

struct alignas(16) Floats {
    float x[4];
};

/// Where sixteen bytes of a query's scores lie in a half, or of its weights, which take their place.
DEV uint32_t spread(uint32_t query, uint32_t chunk) { return query * KV_BLOCK * 4 + ((chunk ^ (query % 8)) * 16); }

/// A half of the scores of 16 queries and a tile's 32 positions.
template <uint32_t RANK> DEV void score(uint32_t tile) {
    typedef Shape<RANK> S;
    const uint32_t lane = ptx::thread() % 32, warp = ptx::thread() / 32, m = warp % M, half = warp / M;
    const uint32_t queries = ptx::address(ptx::shared());
    float sums[4][4] = {};
#pragma unroll
    for (uint32_t k = 0; k < S::STEPS; k++) {
        const uint32_t chunk = (half * S::STEPS + k) * 2;
        uint32_t a[4];
        ptx::load_tiles(a, queries + S::Rows::spread(m * 16 + lane % 16, chunk + lane / 16));
#pragma unroll
        for (uint32_t n = 0; n < 2; n++) {
            uint32_t b[4];
            ptx::load_tiles(b, tile + S::Rows::spread(n * 16 + lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2));
            ptx::multiply(sums[2 * n], a, b[0], b[1]);
            ptx::multiply(sums[2 * n + 1], a, b[2], b[3]);
        }
    }
    char *scores = ptx::shared() + S::SCORES + half * S::HALF_BYTES;
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
        const uint32_t n = i / 2, row = m * 16 + i % 2 * 8 + lane / 4;
        float *to = (float *)(scores + spread(row, n * 2 + lane % 4 / 2)) + lane % 2 * 2;
        to[0] = sums[n][i % 2 * 2];
        to[1] = sums[n][i % 2 * 2 + 1];
    }
}

/// Turns scores into weights against the largest so far, and says by how much what was summed before shrinks.
template <uint32_t RANK> DEV void soften(Softmax &state, uint32_t first, float scale) {
    typedef Shape<RANK> S;
    const uint32_t query = ptx::thread() / 4, quarter = ptx::thread() % 4;
    char *scores = ptx::shared() + S::SCORES;
    float x[8];
    float largest = state.largest;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t at = spread(query, quarter * 2 + i);
        const Floats left = *(const Floats *)(scores + at), right = *(const Floats *)(scores + S::HALF_BYTES + at);
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const bool seen = first + quarter * 8 + i * 4 + j < state.length;
            x[i * 4 + j] = seen ? (left.x[j] + right.x[j]) * scale : -ptx::from_bits(0x7f800000u);
            largest = x[i * 4 + j] > largest ? x[i * 4 + j] : largest;
        }
    }
    for (uint32_t mask = 1; mask < 4; mask *= 2) {
        const float other = ptx::shuffle_xor(largest, mask);
        largest = other > largest ? other : largest;
    }
    const float rescale = ptx::exp2(state.largest - largest);
    float weight = 0;
    Eight weights;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const float a = ptx::exp2(x[2 * i] - largest), b = ptx::exp2(x[2 * i + 1] - largest);
        weight += a;
        weight += b;
        weights.pair[i] = ptx::pack_bf16(a, b);
    }
    for (uint32_t mask = 1; mask < 4; mask *= 2) weight += ptx::shuffle_xor(weight, mask);
    state.weight = state.weight * rescale + weight;
    state.largest = largest;
    ptx::sync_warp();
    *(Eight *)(scores + spread(query, quarter)) = weights;
    if (quarter == 0) ((float *)(ptx::shared() + S::RESCALE))[query] = rescale;
}

/// sum[queries][a warp's columns] = rescaled sum + weights * values, for so many sixteens of queries.
template <uint32_t RANK> DEV void gather(float (&sum)[M][Shape<RANK>::COLUMNS / 8][4], uint32_t tile, uint32_t some) {
    typedef Shape<RANK> S;
    const uint32_t lane = ptx::thread() % 32, warp = ptx::thread() / 32;
    const float *rescale = (const float *)(ptx::shared() + S::RESCALE);
    const uint32_t weights = ptx::address(ptx::shared()) + S::SCORES;
#pragma unroll
    for (uint32_t i = 0; i < 2 * M; i++) {
        if (i / 2 >= some) break;
        const float factor = rescale[i * 8 + lane / 4];
#pragma unroll
        for (uint32_t d = 0; d < S::COLUMNS / 8; d++) {
            sum[i / 2][d][i % 2 * 2] *= factor;
            sum[i / 2][d][i % 2 * 2 + 1] *= factor;
        }
    }
#pragma unroll
    for (uint32_t k = 0; k < KV_BLOCK / 16; k++) {
        uint32_t a[M][4];
#pragma unroll
        for (uint32_t m = 0; m < M; m++)
            if (m < some) ptx::load_tiles(a[m], weights + spread(m * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
        for (uint32_t d = 0; d < S::COLUMNS / 16; d++) {
            uint32_t b[4];
            const uint32_t position = k * 16 + lane / 8 % 2 * 8 + lane % 8;
            const uint32_t chunk = warp * (S::COLUMNS / 8) + d * 2 + lane / 16;
            ptx::load_tiles_transposed(b, tile + S::Rows::spread(position, chunk));
#pragma unroll
            for (uint32_t m = 0; m < M; m++) {
                if (m >= some) break;
                ptx::multiply(sum[m][2 * d], a[m], b[0], b[1]);
                ptx::multiply(sum[m][2 * d + 1], a[m], b[2], b[3]);
            }
        }
    }
}

template <uint32_t RANK> DEV void attend(const AttendParams &p) {
    typedef Shape<RANK> S;
    const uint32_t index = ptx::block_y() / p.kv_heads, slice = ptx::block_y() % p.kv_heads;
    const uint32_t group = p.heads / p.kv_heads, begin = ptx::block() * p.stretch;
    const attention::Tile tile(p, index);
    if (begin >= tile.length) return;
    const uint32_t shared = ptx::address(ptx::shared()), first = begin / KV_BLOCK, end = tile.end(p);
    const uint32_t some = (tile.count * group + 15) / 16, lane = ptx::thread() % 32, warp = ptx::thread() / 32;
    const auto fetch = [&](uint32_t block) {
        const uint32_t to = shared + S::TILES + block % 2 * S::Rows::TILE_BYTES;
        attention::fetch<S::DIM, THREADS>(to, p.keys, tile.blocks[block], tile.length - block * KV_BLOCK);
    };
    fetch(first);
    attention::fetch_queries<S::DIM, M, THREADS>(p, tile, slice, shared);
    Softmax state;
    state.length = tile.length_of(ptx::thread() / 4, group);
    float sum[M][S::COLUMNS / 8][4] = {};
    for (uint32_t block = first; block < end; block++) {
        const uint32_t here = shared + S::TILES + block % 2 * S::Rows::TILE_BYTES;
        ptx::copy_wait<0>();
        ptx::sync_block();
        if (block + 1 < end) fetch(block + 1);
        if (warp % M < some) score<RANK>(here);
        ptx::sync_block();
        if (warp / 2 < some) soften<RANK>(state, block * KV_BLOCK, p.scale);
        ptx::sync_block();
        gather<RANK>(sum, here, some);
    }
    const auto wanted = [&](uint32_t query) {
        return query < tile.count * group && begin < tile.length_of(query, group);
    };
#pragma unroll
    for (uint32_t i = 0; i < 2 * M; i++) {
        const uint32_t query = i * 8 + lane / 4;
        if (!wanted(query)) continue;
        float *to = tile.part(p, index, slice, query, RANK) + warp * S::COLUMNS + lane % 4 * 2;
#pragma unroll
        for (uint32_t d = 0; d < S::COLUMNS / 8; d++) {
            to[d * 8] = sum[i / 2][d][i % 2 * 2];
            to[d * 8 + 1] = sum[i / 2][d][i % 2 * 2 + 1];
        }
    }
    const uint32_t query = ptx::thread() / 4;
    if (ptx::thread() % 4 != 0 || !wanted(query)) return;
    float *to = tile.part(p, index, slice, query, RANK) + RANK;
    to[0] = state.largest;
    to[1] = state.weight;
}

}  // namespace absorbed

/// Grid: stretches x (tiles * slices of the heads), for decoded positions and for chunks alike.
KERNEL(absorbed::THREADS, 1) attend_latent_512(GRID_CONSTANT AttendParams p) { absorbed::attend<512>(p); }
KERNEL(absorbed::THREADS, 1) attend_latent_128(GRID_CONSTANT AttendParams p) { absorbed::attend<128>(p); }
