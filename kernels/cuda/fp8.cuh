// Weights in E4M3: what codes stand for, where a tile of them lies in shared memory, and the scales of its blocks.
#pragma once

#include "ffn.cuh"

/// Rows and columns of a block of weights that share a scale.
constexpr uint32_t FP8_BLOCK = 128;

/// The values of two codes that are numbers, the first in the low byte.
DEV void widen_fp8(uint32_t codes, float &low, float &high) {
#if __CUDA_ARCH__ >= 890
    ptx::widen_fp8(codes, low, high);
#else
    // The fields of a code, laid where a float has them, mean 2^-120 times its value.
    low = ptx::from_bits((codes & 0x80) << 24 | (codes & 0x7f) << 20) * 0x1p120f;
    high = ptx::from_bits((codes & 0x8000) << 16 | (codes & 0x7f00) << 12) * 0x1p120f;
#endif
}

/// Two codes, the first in the low byte, times their scale: rounded to float, then to bf16, as the host does.
DEV uint32_t scaled_pair(uint32_t codes, float scale) {
    float low, high;
    widen_fp8(codes, low, high);
    return ptx::pack_bf16(low * scale, high * scale);
}

/// The codes of a tile, 64 inner elements of each feature at a time, on their way from shared memory to the tensor
/// cores. A tile has two halves, each within 128 features of one matrix, so that each has one scale at a time.
struct TileCodes {
    static constexpr uint32_t BYTES = 1;  // of a weight
    const float *scales[2];               // of either half, for each 128 inner elements
    float scale[2];

    /// The halves begin with features `first` and `second`.
    DEV TileCodes(const FfnParams &p, const Tile &tile, uint32_t first, uint32_t second) {
        const uint32_t hidden = ceil_div(p.hidden, FP8_BLOCK), inter = ceil_div(p.inter, FP8_BLOCK);
        const uint32_t across = tile.down ? inter : hidden, blocks = tile.down ? hidden : inter;
        const uint64_t row = (uint64_t)tile.slot * blocks + first / FP8_BLOCK;
        scales[0] = (tile.down ? p.down_scale : p.gate_scale) + row * across;
        scales[1] = (tile.down ? p.down_scale : p.up_scale) + row * across;
        // A half behind the last feature has no scale.
        if (second / FP8_BLOCK < blocks) scales[1] += (second / FP8_BLOCK - first / FP8_BLOCK) * across;
    }

    /// The stage that comes next begins at inner element `k`.
    DEV void reach(uint32_t k) {
        scale[0] = scales[0][k / FP8_BLOCK];
        scale[1] = scales[1][k / FP8_BLOCK];
    }

    /// Where sixteen codes of a 64-byte row lie: spread so that eight bytes of eight rows meet all banks. It is the
    /// copy engine's swizzle over 64 bytes, too.
    DEV static uint32_t place(uint32_t row, uint32_t chunk) { return row * 64 + ((chunk ^ (row / 2 % 4)) * 16); }

    /// The left operand of a warp's product: 16 features from row `feature` of the tile at `shared` on, and the 16 inner
    /// elements of step `k`.
    DEV void load(uint32_t (&a)[4], uint32_t half, uint32_t shared, uint32_t feature, uint32_t k) const {
        const uint32_t lane = ptx::thread() % 32, row = feature + lane / 4;
        // Rows that are eight apart are spread alike.
        const char *codes = ptx::shared() + (shared - ptx::address(ptx::shared())) + place(row, k) + lane % 4 * 2;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            a[i] = scaled_pair(*(const uint16_t *)(codes + i % 2 * 8 * 64 + i / 2 * 8), scale[half]);
    }
};
