// What a measurement needs: random weights made on the device, and a pass that only reads.
#pragma once

#include "ptx.cuh"

/// Mirrors `cuda::probe::Params` in Rust.
struct ProbeParams {
    bf16 *data;
    uint64_t chunks;  // of eight values
    uint32_t *sink;
    uint32_t seed;
    float scale;
};

/// Spreads 32 bits over 32 bits (the finaliser of MurmurHash3).
DEV uint32_t spread_bits(uint32_t x) {
    x = (x ^ x >> 16) * 0x85ebca6bu;
    x = (x ^ x >> 13) * 0xc2b2ae35u;
    return x ^ x >> 16;
}

/// The value at an index: uniform in -scale .. scale. `filled` in Rust computes the same.
DEV float filled(uint64_t index, uint32_t seed, float scale) {
    const uint32_t hash = spread_bits((uint32_t)index ^ spread_bits((uint32_t)(index >> 32) ^ seed));
    return ((float)(hash >> 8) * (1.0f / 8388608.0f) - 1.0f) * scale;
}

KERNEL(256, 1) fill(GRID_CONSTANT ProbeParams p) {
    const uint64_t stride = (uint64_t)ptx::blocks() * 256;
    for (uint64_t i = (uint64_t)ptx::block() * 256 + ptx::thread(); i < p.chunks; i += stride) {
        Eight eight;
        for (uint32_t j = 0; j < 4; j++) {
            const uint64_t at = i * 8 + j * 2;
            eight.pair[j] = ptx::pack_bf16(filled(at, p.seed, p.scale), filled(at + 1, p.seed, p.scale));
        }
        ((Eight *)p.data)[i] = eight;
    }
}

/// Reads everything once, eight loads of sixteen bytes ahead; what it finds goes nowhere unless it is 0xffffffff.
KERNEL(256, 1) stream(GRID_CONSTANT ProbeParams p) {
    constexpr uint32_t AHEAD = 8;
    const Eight *data = (const Eight *)p.data;
    const uint64_t stride = (uint64_t)ptx::blocks() * 256 * AHEAD;
    uint32_t found = 0;
    for (uint64_t i = (uint64_t)ptx::block() * 256 * AHEAD + ptx::thread(); i < p.chunks; i += stride) {
        Eight eight[AHEAD];
#pragma unroll
        for (uint32_t j = 0; j < AHEAD; j++) eight[j] = i + j * 256 < p.chunks ? data[i + j * 256] : Eight{};
#pragma unroll
        for (uint32_t j = 0; j < AHEAD; j++)
            found |= eight[j].pair[0] | eight[j].pair[1] | eight[j].pair[2] | eight[j].pair[3];
    }
    if (found == 0xffffffffu) ptx::add(p.sink, 1);
}
