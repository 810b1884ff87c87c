// Prepares queries and fills the paged cache: norm of each head, rotation by position, keys and values to their slot.
// Whole heads rotate, element i with i + dim / 2 (Llama, Qwen, Mixtral).
//
// Cache: [blocks, kv_heads, KV_BLOCK positions, dim] bf16, keys and values each. A slot is block * KV_BLOCK + place.
#pragma once

#include "ptx.cuh"

constexpr uint32_t KV_BLOCK = 32;

/// Mirrors `cuda::attention::KvParams` in Rust.
struct KvParams {
    const bf16 *qkv;            // [rows, heads + 2 kv_heads, dim]
    const bf16 *query_weight;   // [dim] norm of queries, or null for none
    const bf16 *key_weight;     // [dim] norm of keys, or null
    const float *angles;        // [positions, dim]: dim / 2 cosines, then as many sines
    const uint32_t *position;   // [rows]
    const uint32_t *slot;       // [rows]
    bf16 *query;                // [rows, heads, dim]
    bf16 *keys;
    bf16 *values;
    uint32_t rows;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t dim;               // at most 256, a multiple of 64
    float epsilon;
};

namespace kv {

constexpr uint32_t THREADS = 128;
constexpr uint32_t PAIRS = 4;  // of a lane: elements i and i + half for i = lane, lane + 32, ...

/// Where the head of a row goes.
DEV bf16 *target(const KvParams &p, uint64_t row, uint32_t head) {
    if (head < p.heads) return p.query + (row * p.heads + head) * p.dim;
    const bool key = head < p.heads + p.kv_heads;
    const uint32_t kv_head = head - p.heads - (key ? 0 : p.kv_heads), slot = p.slot[row];
    const uint64_t at = ((uint64_t)(slot / KV_BLOCK) * p.kv_heads + kv_head) * KV_BLOCK + slot % KV_BLOCK;
    return (key ? p.keys : p.values) + at * p.dim;
}

/// Multiplies by weight over rms; element 2j of a lane is at 32 j + lane, 2j + 1 half a head further.
DEV void normalise(const KvParams &p, const bf16 *weight, float (&x)[2 * PAIRS]) {
    const uint32_t lane = ptx::thread() % 32, half = p.dim / 2;
    float squares = 0;
#pragma unroll
    for (uint32_t j = 0; j < 2 * PAIRS; j++) squares += x[j] * x[j];
    for (uint32_t mask = 16; mask > 0; mask /= 2) squares += ptx::shuffle_xor(squares, mask);
    const float scale = ptx::divide(1.0f, ptx::root(ptx::divide(squares, (float)p.dim) + p.epsilon));
#pragma unroll
    for (uint32_t j = 0; j < PAIRS; j++) {
        const uint32_t i = 32 * j + lane;
        if (i >= half) continue;
        x[2 * j] *= scale * widen(weight[i]);
        x[2 * j + 1] *= scale * widen(weight[i + half]);
    }
}

}  // namespace kv

/// One warp for each head of each row.
KERNEL(kv::THREADS, 4) write_kv(GRID_CONSTANT KvParams p) {
    using namespace kv;
    const uint32_t lane = ptx::thread() % 32, all = p.heads + 2 * p.kv_heads, half = p.dim / 2;
    const uint64_t item = (uint64_t)ptx::block() * (THREADS / 32) + ptx::thread() / 32;
    const uint64_t row = item / all;
    const uint32_t head = item % all;
    if (row >= p.rows) return;
    const bf16 *from = p.qkv + item * p.dim;
    bf16 *to = target(p, row, head);
    float x[2 * PAIRS] = {};
#pragma unroll
    for (uint32_t j = 0; j < PAIRS; j++) {
        const uint32_t i = 32 * j + lane;
        if (i >= half) continue;
        x[2 * j] = widen(from[i]);
        x[2 * j + 1] = widen(from[i + half]);
    }
    const bf16 *weight = head < p.heads ? p.query_weight : p.key_weight;
    const bool turns = head < p.heads + p.kv_heads;
    if (turns && weight) normalise(p, weight, x);
    const float *angle = p.angles + (uint64_t)p.position[row] * p.dim;
#pragma unroll
    for (uint32_t j = 0; j < PAIRS; j++) {
        const uint32_t i = 32 * j + lane;
        if (i >= half) continue;
        if (turns) {
            const float cosine = angle[i], sine = angle[i + half], a = x[2 * j], b = x[2 * j + 1];
            x[2 * j] = a * cosine - b * sine;
            x[2 * j + 1] = b * cosine + a * sine;
        }
        to[i] = narrow(x[2 * j]);
        to[i + half] = narrow(x[2 * j + 1]);
    }
}
