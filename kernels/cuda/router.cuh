// The gate: each token's experts and weights from its router logits. One warp for each row.
#pragma once

#include "ptx.cuh"

/// Mirrors `cuda::rows::RouteParams` in Rust.
struct RouteParams {
    const float *logits;  // [rows, experts]
    const float *bias;    // [experts] or null; counts in the choice and not in the weight
    uint32_t *chosen;     // [rows, top_k] ascending
    float *weight;        // [rows, top_k] in the same order
    uint32_t rows;
    uint32_t experts;     // at most 512
    uint32_t top_k;       // at most 32
    uint32_t groups;      // at most 32; 1: all experts are eligible
    uint32_t kept;        // groups whose experts are eligible
    uint32_t sigmoid;     // else softmax
    uint32_t normalize;   // weights are divided by their sum
    float scale;          // multiplies the weights at the end
};

namespace router {

constexpr uint32_t THREADS = 128;
constexpr uint32_t EACH = 16;  // experts of a lane: lane, lane + 32, ...

/// Unsigned integers in the order of the floats; NaN loses to every number, 0 to everything.
DEV uint32_t order(float x) {
    if (x != x) x = -ptx::from_bits(0x7f800000u);
    const uint32_t b = ptx::bits(x);
    return b >> 31 ? ~b : b | 0x80000000u;
}
DEV float unorder(uint32_t key) { return ptx::from_bits(key >> 31 ? key & 0x7fffffffu : ~key); }

struct Best {
    uint32_t key, id;
};

DEV void better(Best &best, uint32_t key, uint32_t id) {
    if (key > best.key || (key == best.key && id < best.id)) best = {key, id};
}
/// The best over all lanes, the lower id among equals; every lane gets it.
DEV Best best_of_warp(Best best) {
    for (uint32_t mask = 16; mask > 0; mask /= 2) {
        const uint32_t key = ptx::shuffle_xor(best.key, mask), id = ptx::shuffle_xor(best.id, mask);
        better(best, key, id);
    }
    return best;
}
DEV Best best_of(const uint32_t (&key)[EACH], uint32_t first, uint32_t end) {
    Best best = {0, 0xffffffffu};
#pragma unroll
    for (uint32_t i = 0; i < EACH; i++) {
        const uint32_t id = i * 32 + ptx::thread() % 32;
        if (id >= first && id < end) better(best, key[i], id);
    }
    return best_of_warp(best);
}
/// Takes an expert out of the choice.
DEV void strike(uint32_t (&key)[EACH], uint32_t id) {
#pragma unroll
    for (uint32_t i = 0; i < EACH; i++)
        if (i * 32 + ptx::thread() % 32 == id) key[i] = 0;
}

DEV float warp_sum(float x) {
    for (uint32_t mask = 16; mask > 0; mask /= 2) x += ptx::shuffle_xor(x, mask);
    return x;
}
DEV float warp_largest(float x) {
    for (uint32_t mask = 16; mask > 0; mask /= 2) {
        const float other = ptx::shuffle_xor(x, mask);
        x = other > x ? other : x;
    }
    return x;
}

/// Experts outside the best groups lose; a group is worth its two best experts.
DEV void keep_groups(const RouteParams &p, uint32_t (&key)[EACH]) {
    const uint32_t lane = ptx::thread() % 32, size = p.experts / p.groups;
    Best mine = {0, lane};
    for (uint32_t g = 0; g < p.groups; g++) {
        const Best first = best_of(key, g * size, (g + 1) * size);
        uint32_t rest[EACH];
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++) rest[i] = key[i];
        strike(rest, first.id);
        const Best second = best_of(rest, g * size, (g + 1) * size);
        if (lane == g) mine.key = order(unorder(first.key) + unorder(second.key));
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < p.kept; i++) {
        const Best best = best_of_warp(mine);
        kept |= 1u << best.id;
        if (lane == best.id) mine.key = 0;
    }
#pragma unroll
    for (uint32_t i = 0; i < EACH; i++) {
        const uint32_t id = i * 32 + lane;
        if (id < p.experts && !(kept >> (id / size) & 1)) key[i] = 0;
    }
}

/// Scores and the order of choice; returns what scores are divided by.
DEV float score(const RouteParams &p, const float *logits, float (&scores)[EACH], uint32_t (&key)[EACH]) {
    const uint32_t lane = ptx::thread() % 32;
    const float lowest = -ptx::from_bits(0x7f800000u);
    float largest = lowest, sum = 0;
#pragma unroll
    for (uint32_t i = 0; i < EACH; i++) {
        scores[i] = i * 32 + lane < p.experts ? logits[i * 32 + lane] : lowest;
        largest = scores[i] > largest ? scores[i] : largest;
    }
    largest = warp_largest(largest);
#pragma unroll
    for (uint32_t i = 0; i < EACH; i++) {
        const uint32_t id = i * 32 + lane;
        const float logit = scores[i];
        scores[i] = p.sigmoid ? ptx::divide(1.0f, 1.0f + exponential(-logit)) : exponential(logit - largest);
        const float choice = !p.sigmoid ? logit : p.bias ? scores[i] + p.bias[id < p.experts ? id : 0] : scores[i];
        key[i] = id < p.experts ? order(choice) : 0;
        if (id < p.experts) sum += scores[i];
    }
    sum = warp_sum(sum);
    return p.sigmoid ? 1.0f : sum;
}

/// Lane j of the first top_k gets the j-th chosen expert, ascending, and its score.
DEV void choose(const RouteParams &p, uint32_t (&key)[EACH], const float (&scores)[EACH], uint32_t &id, float &value) {
    const uint32_t lane = ptx::thread() % 32;
    uint32_t picked = 0xffffffffu;
    float picked_score = 0;
    for (uint32_t j = 0; j < p.top_k; j++) {
        const Best best = best_of(key, 0, p.experts);
        float score = 0;
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++)
            if (i * 32 + lane == best.id) score = scores[i];
        score = ptx::shuffle(score, best.id % 32);
        strike(key, best.id);
        if (lane == j) picked = best.id, picked_score = score;
    }
    uint32_t rank = 0;
    for (uint32_t j = 0; j < p.top_k; j++) rank += ptx::shuffle(picked, j) < picked;
    for (uint32_t j = 0; j < p.top_k; j++) {
        const uint32_t to = ptx::shuffle(rank, j), from = ptx::shuffle(picked, j);
        const float score = ptx::shuffle(picked_score, j);
        if (to == lane) id = from, value = score;
    }
}

}  // namespace router

KERNEL(router::THREADS, 4) route(GRID_CONSTANT RouteParams p) {
    using namespace router;
    const uint32_t lane = ptx::thread() % 32;
    const uint64_t row = ptx::block() * (THREADS / 32) + ptx::thread() / 32;
    if (row >= p.rows) return;
    float scores[EACH];
    uint32_t key[EACH];
    const float total = score(p, p.logits + row * p.experts, scores, key);
    if (p.groups > 1) keep_groups(p, key);
    uint32_t id = 0;
    float value = 0;
    choose(p, key, scores, id, value);
    value = ptx::divide(value, total);
    float sum = 0;
    for (uint32_t j = 0; j < p.top_k; j++) sum += ptx::shuffle(value, j);
    if (p.normalize) value = ptx::divide(value, sum + 1e-20f);
    if (lane < p.top_k) {
        p.chosen[row * p.top_k + lane] = id;
        p.weight[row * p.top_k + lane] = value * p.scale;
    }
}
