// Prepares queries and fills the paged cache: bias, norm, clamp, rotation by position, keys and values to their slot.
// Of a head the first `turned` elements rotate, element i with i + turned / 2 (Llama, Qwen, Mixtral, GLM).
//
// Cache: [blocks, kv_heads, KV_BLOCK positions, dim] bf16, keys and values each.
#pragma once

#include "ptx.cuh"

constexpr uint32_t KV_BLOCK = 32;

/// Mirrors `cuda::attention::KvParams` in Rust.
struct KvParams {
    const bf16 *qkv;            // [rows, heads + 2 kv_heads, dim]
    const float *bias;          // [heads + 2 kv_heads, dim] or null
    const bf16 *query_weight;   // norm of queries, [dim], or [heads, dim] where it is `wide`; or null for none
    const bf16 *key_weight;     // norm of keys, likewise
    const float *angles;        // [positions, turned]: turned / 2 cosines, then as many sines
    const uint32_t *position;   // [rows]
    const uint32_t *table;      // [rows] where the sequence's KV blocks begin in `blocks`
    const uint32_t *blocks;
    bf16 *query;                // [rows, heads, dim]
    bf16 *keys;
    bf16 *values;
    uint32_t rows;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t dim;               // even, at most 256
    uint32_t turned;            // even, at most dim
    uint32_t wide;              // norms have one mean over all heads (OLMoE)
    float epsilon;
    float clip;                 // of queries, keys and values, after their norms; infinity for none
};

namespace kv {

constexpr uint32_t THREADS = 128;
constexpr uint32_t PAIRS = 4;  // of a lane: i = lane, lane + 32, ...

/// A head of a row, and what is done to it.
struct Head {
    uint64_t row;
    uint32_t head;  // of all: queries, keys, values
    bool query, value;

    DEV Head(const KvParams &p, uint64_t item)
        : row(item / (p.heads + 2 * p.kv_heads)), head(item % (p.heads + 2 * p.kv_heads)), query(head < p.heads),
          value(head >= p.heads + p.kv_heads) {}

    DEV const bf16 *weight(const KvParams &p) const {
        return value ? nullptr : query ? p.query_weight : p.key_weight;
    }
    /// The heads that share its norm.
    DEV uint32_t first(const KvParams &p) const { return !p.wide ? head : query ? 0 : p.heads; }
    DEV uint32_t count(const KvParams &p) const { return !p.wide ? 1 : query ? p.heads : p.kv_heads; }

    DEV bf16 *target(const KvParams &p) const {
        if (query) return p.query + (row * p.heads + head) * p.dim;
        const uint32_t kv_head = head - p.heads - (value ? p.kv_heads : 0), position = p.position[row];
        const uint64_t block = p.blocks[p.table[row] + position / KV_BLOCK];
        const uint64_t at = (block * p.kv_heads + kv_head) * KV_BLOCK + position % KV_BLOCK;
        return (value ? p.values : p.keys) + at * p.dim;
    }
};

/// Where the two elements of pair i lie: those that rotate first, then the rest.
DEV uint32_t left(const KvParams &p, uint32_t i) { return i < p.turned / 2 ? i : i + p.turned / 2; }
DEV uint32_t right(const KvParams &p, uint32_t i) { return i < p.turned / 2 ? i + p.turned / 2 : i + p.dim / 2; }

DEV float element(const KvParams &p, uint64_t row, uint32_t head, uint32_t i) {
    const uint64_t at = (uint64_t)head * p.dim + i, width = (uint64_t)(p.heads + 2 * p.kv_heads) * p.dim;
    return widen(p.qkv[row * width + at]) + (p.bias ? p.bias[at] : 0.0f);
}

/// One over the root of the mean of squares of all heads that share a norm.
DEV float scale_of(const KvParams &p, const Head &head) {
    const uint32_t lane = ptx::thread() % 32, first = head.first(p), count = head.count(p);
    float squares = 0;
    for (uint32_t h = first; h < first + count; h++)
        for (uint32_t i = lane; i < p.dim / 2; i += 32) {
            const float a = element(p, head.row, h, left(p, i)), b = element(p, head.row, h, right(p, i));
            squares += a * a;
            squares += b * b;
        }
    for (uint32_t mask = 16; mask > 0; mask /= 2) squares += ptx::shuffle_xor(squares, mask);
    const float mean = ptx::divide(squares, (float)(count * p.dim));
    return ptx::divide(1.0f, ptx::root(mean + p.epsilon));
}

DEV float clamp(float x, float limit) { return x > limit ? limit : x < -limit ? -limit : x; }

}  // namespace kv

/// One warp for each head of each row.
KERNEL(kv::THREADS, 4) write_kv(GRID_CONSTANT KvParams p) {
    using namespace kv;
    const Head head(p, (uint64_t)ptx::block() * (THREADS / 32) + ptx::thread() / 32);
    if (head.row >= p.rows) return;
    bf16 *to = head.target(p);
    const bf16 *weight = head.weight(p);
    const float scale = weight ? scale_of(p, head) : 1.0f;
    if (weight && p.wide) weight += (head.head - head.first(p)) * p.dim;
    const float *angle = p.angles + (uint64_t)p.position[head.row] * p.turned;
#pragma unroll
    for (uint32_t j = 0; j < PAIRS; j++) {
        const uint32_t i = 32 * j + ptx::thread() % 32;
        if (i >= p.dim / 2) continue;
        const uint32_t l = left(p, i), r = right(p, i);
        float a = element(p, head.row, head.head, l), b = element(p, head.row, head.head, r);
        if (weight) {
            a *= scale * widen(weight[l]);
            b *= scale * widen(weight[r]);
        }
        a = clamp(a, p.clip);
        b = clamp(b, p.clip);
        const bool turns = !head.value && i < p.turned / 2;
        const float cosine = turns ? angle[i] : 1.0f, sine = turns ? angle[i + p.turned / 2] : 0.0f;
        to[l] = narrow(a * cosine - b * sine);
        to[r] = narrow(b * cosine + a * sine);
    }
}
