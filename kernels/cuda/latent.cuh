// Latent attention's rows on their way: norms of what was compressed, rotation by position, and the paged cache, which
// keeps of a position one row for all heads: the compressed key and value, then the part of the key that turns.
//
// Cache: [blocks, KV_BLOCK positions, rank + turned] bf16.
#pragma once

#include "kv.cuh"
#include "norm.cuh"

/// Mirrors `cuda::latent::WriteParams` in Rust.
struct LatentParams {
    const bf16 *projected;      // [rows, width]; its last rank + turned columns are for the cache
    const float *bias;          // [width] or null
    const bf16 *query_weight;   // norm of compressed queries, the first query_rank columns; [query_rank]
    const bf16 *key_weight;     // norm of compressed keys and values, [rank]
    const float *angles;        // [positions, turned]: turned / 2 cosines, then as many sines
    const uint32_t *position;   // [rows]
    const uint32_t *table;      // [rows] where the sequence's KV blocks begin in `blocks`
    const uint32_t *blocks;
    bf16 *query;                // [rows, query_rank]
    bf16 *cache;
    uint32_t width;
    uint32_t query_rank;
    uint32_t rank;
    uint32_t turned;            // even
    uint32_t neighbours;        // element 2i turns with 2i + 1, and not i with i + turned / 2
    float epsilon;
};

/// Mirrors `cuda::latent::TurnParams` in Rust.
struct TurnParams {
    const bf16 *from;           // what turns of head h of row r begins at r * from_row + h * from_head
    const float *angles;        // as above
    const uint32_t *position;   // [rows]
    bf16 *to;                   // likewise at (r * heads + h) * to_head
    uint32_t rows;
    uint32_t heads;
    uint32_t from_row;
    uint32_t from_head;
    uint32_t to_head;
    uint32_t turned;
    uint32_t neighbours;
};

namespace latent {

constexpr uint32_t TURN_THREADS = 128;

/// Where the two elements of pair i lie.
struct Pair {
    uint32_t left, right;

    DEV Pair(uint32_t i, uint32_t turned, bool neighbours)
        : left(neighbours ? 2 * i : i), right(neighbours ? 2 * i + 1 : i + turned / 2) {}

    DEV void turn(bf16 *to, float a, float b, float cosine, float sine) const {
        to[left] = narrow(a * cosine - b * sine);
        to[right] = narrow(b * cosine + a * sine);
    }
};

DEV float element(const LatentParams &p, uint64_t row, uint32_t i) {
    return widen(p.projected[row * p.width + i]) + (p.bias ? p.bias[i] : 0.0f);
}

/// Normalises `count` columns of a row, from `first` on. All threads of the block.
DEV void normalise(const LatentParams &p, uint64_t row, uint32_t first, uint32_t count, const bf16 *weight, bf16 *to) {
    float squares = 0;
    for (uint32_t i = ptx::thread(); i < count; i += rows::THREADS) {
        const float x = element(p, row, first + i);
        squares += x * x;
    }
    const float mean = ptx::divide(rows::block_sum(squares), (float)count);
    const float scale = ptx::divide(1.0f, ptx::root(mean + p.epsilon));
    for (uint32_t i = ptx::thread(); i < count; i += rows::THREADS)
        to[i] = narrow(element(p, row, first + i) * scale * widen(weight[i]));
}

}  // namespace latent

/// Grid: rows x 1, or 2 where queries are compressed, too.
KERNEL(rows::THREADS, 1) write_latent(GRID_CONSTANT LatentParams p) {
    using namespace latent;
    const uint64_t row = ptx::block();
    if (ptx::block_y() == 1) {
        normalise(p, row, 0, p.query_rank, p.query_weight, p.query + row * p.query_rank);
        return;
    }
    const uint32_t position = p.position[row], first = p.width - p.rank - p.turned;
    const uint64_t block = p.blocks[p.table[row] + position / KV_BLOCK];
    bf16 *to = p.cache + (block * KV_BLOCK + position % KV_BLOCK) * (p.rank + p.turned);
    normalise(p, row, first, p.rank, p.key_weight, to);
    const float *angle = p.angles + (uint64_t)position * p.turned;
    const uint32_t turned = first + p.rank;
    for (uint32_t i = ptx::thread(); i < p.turned / 2; i += rows::THREADS) {
        const Pair pair(i, p.turned, p.neighbours);
        const float a = element(p, row, turned + pair.left), b = element(p, row, turned + pair.right);
        pair.turn(to + p.rank, a, b, angle[i], angle[i + p.turned / 2]);
    }
}

/// One warp for each head of each row.
KERNEL(latent::TURN_THREADS, 4) turn_query(GRID_CONSTANT TurnParams p) {
    using namespace latent;
    const uint64_t item = (uint64_t)ptx::block() * (TURN_THREADS / 32) + ptx::thread() / 32, row = item / p.heads;
    if (row >= p.rows) return;
    const bf16 *from = p.from + row * p.from_row + item % p.heads * p.from_head;
    const float *angle = p.angles + (uint64_t)p.position[row] * p.turned;
    for (uint32_t i = ptx::thread() % 32; i < p.turned / 2; i += 32) {
        const Pair pair(i, p.turned, p.neighbours);
        const float a = widen(from[pair.left]), b = widen(from[pair.right]);
        pair.turn(p.to + item * p.to_head, a, b, angle[i], angle[i + p.turned / 2]);
    }
}
