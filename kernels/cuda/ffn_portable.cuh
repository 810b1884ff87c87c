// The grouped SwiGLU for any GPU since Ampere: the same parameters and the same list of tiles, products by warps.
//
// A block of four warps takes 64 gate and 64 up features (or 128 down features) of up to 64 rows. Each warp
// multiplies 16 features of either half with all rows. Copies run two stages ahead of the products.
//
// Weights are bf16, or E4M3 codes that become bf16 on their way from shared memory to the tensor cores, each by the
// warp that multiplies it: from there on both are the same products in the same order, and have the same bits.
#pragma once

#include "fp8.cuh"

namespace portable {

constexpr uint32_t STAGES = 3;
constexpr uint32_t K = 64;
constexpr uint32_t WIDTH = 64;
constexpr uint32_t THREADS = 128;
constexpr uint32_t FEATURES = 128;  // of a tile: 0..63 are the first half, 64..127 the second
constexpr uint32_t ROWS_BYTES = WIDTH * K * 2;
constexpr uint32_t ROW_PASSES = WIDTH * 8 / THREADS;

typedef Walk<64, 128, WIDTH> Tiles;

DEV uint32_t depth(const FfnParams &p, const Tile &tile) { return tile.down ? p.inter : p.hidden; }
/// Where sixteen bytes of a 128-byte row lie: spread so that eight rows of one chunk meet eight bank groups.
DEV uint32_t spread(uint32_t row, uint32_t chunk) { return row * 128 + ((chunk ^ (row % 8)) * 16); }

/// Weights that are multiplied as they lie in memory.
struct Halves {
    static constexpr uint32_t BYTES = 2;  // of a weight

    DEV Halves() {}
    DEV Halves(const FfnParams &, const Tile &) {}
    DEV void reach(uint32_t) {}

    DEV static uint32_t place(uint32_t row, uint32_t chunk) { return spread(row, chunk); }

    /// 16 features from `feature` on and the 16 inner elements of step `k`.
    DEV void load(uint32_t (&a)[4], uint32_t, uint32_t shared, uint32_t feature, uint32_t k) const {
        const uint32_t lane = ptx::thread() % 32;
        ptx::load_tiles(a, shared + place(feature + lane % 16, k * 2 + lane / 16));
    }
};

/// Weights in E4M3.
struct Codes : TileCodes {
    DEV Codes(const FfnParams &p, const Tile &tile)
        : TileCodes(p, tile, tile.m * (tile.down ? 128 : 64), tile.down ? tile.m * 128 + 64 : tile.m * 64) {}
};

template <typename Weights> constexpr uint32_t WEIGHT_BYTES = FEATURES * K * Weights::BYTES;
template <typename Weights> constexpr uint32_t STAGE_BYTES = WEIGHT_BYTES<Weights> + ROWS_BYTES;

/// What one thread copies of a tile: sixteen bytes of some features' weights and of some rows.
template <typename Weights> struct Copy {
    static constexpr uint32_t CHUNKS = K * Weights::BYTES / 16;  // of a feature in a stage
    static constexpr uint32_t STRIDE = THREADS / CHUNKS;         // features between a thread's passes
    static constexpr uint32_t PASSES = 64 / STRIDE;              // over either half
    const char *weights[2];                                      // the first feature of either half
    uint32_t features[2];                                        // how many of them exist
    const bf16 *rows;
    uint32_t stride;                                             // of rows
    uint32_t row[ROW_PASSES];

    /// 128 features of one matrix from feature m on, of which `left` exist.
    DEV void take(const void *matrix, uint32_t m, uint32_t left, uint32_t inner) {
        const uint64_t feature = (uint64_t)inner * Weights::BYTES;
        weights[0] = (const char *)matrix + m * feature;
        weights[1] = weights[0] + 64 * feature;
        features[0] = left < 64 ? left : 64;
        features[1] = left < 64 ? 0 : left < 128 ? left - 64 : 64;
    }

    DEV void stage(uint32_t to, uint32_t count, uint32_t inner, uint32_t k) const {
        stage_weights(to, inner, k);
        stage_rows(to + WEIGHT_BYTES<Weights>, count, inner, k + ptx::thread() % 8 * 8);
    }

    DEV void stage_weights(uint32_t to, uint32_t inner, uint32_t k) const {
        const uint32_t chunk = ptx::thread() % CHUNKS, first = ptx::thread() / CHUNKS;
        k += chunk * (16 / Weights::BYTES);
#pragma unroll
        for (uint32_t i = 0; i < 2 * PASSES; i++) {
            const uint32_t r = first + i % PASSES * STRIDE, half = i / PASSES;
            const bool valid = r < features[half] && k < inner;
            const void *from = valid ? weights[half] + ((uint64_t)r * inner + k) * Weights::BYTES : (const void *)rows;
            ptx::copy16(to + Weights::place(half * 64 + r, chunk), from, valid);
        }
    }

    DEV void stage_rows(uint32_t to, uint32_t count, uint32_t inner, uint32_t k) const {
#pragma unroll
        for (uint32_t i = 0; i < ROW_PASSES; i++) {
            const uint32_t r = ptx::thread() / 8 + i * 16;
            const bool valid = r < count && k < inner;
            const bf16 *from = valid ? rows + (uint64_t)row[i] * stride + k : rows;
            ptx::copy16(to + spread(r, ptx::thread() % 8), from, valid);
        }
    }
};

template <typename Weights> DEV Copy<Weights> copy_of(const FfnParams &p, const Tile &tile) {
    Copy<Weights> copy;
    copy.stride = depth(p, tile);
    if (tile.down) {
        const uint64_t expert = (uint64_t)tile.slot * p.hidden * p.inter * Weights::BYTES;
        const uint32_t m = tile.m * 128;
        copy.take((const char *)p.down + expert, m, p.hidden - m, p.inter);
    } else {
        const uint32_t m = tile.m * 64, left = p.inter - m;
        const uint64_t first = ((uint64_t)tile.slot * p.inter + m) * p.hidden * Weights::BYTES;
        copy.weights[0] = (const char *)p.gate + first;
        copy.weights[1] = (const char *)p.up + first;
        copy.features[0] = copy.features[1] = left < 64 ? left : 64;
    }
    copy.rows = tile.down ? p.act : p.x;
#pragma unroll
    for (uint32_t i = 0; i < ROW_PASSES; i++) {
        const uint32_t r = ptx::thread() / 8 + i * 16;
        copy.row[i] = r >= tile.count ? 0 : tile.down || p.dense ? tile.pair + r : p.row[tile.pair + r];
    }
    return copy;
}

/// The sums of a warp: 16 features of either half, 64 rows in eights.
struct Sums {
    float half[2][WIDTH / 8][4];
};

/// Adds one stage; the inner loop over rows stops at the tile's last eight.
template <typename Weights>
DEV void multiply_stage(const Weights &weights, Sums &sums, uint32_t shared, uint32_t count) {
    const uint32_t lane = ptx::thread() % 32, warp = ptx::thread() / 32;
#pragma unroll
    for (uint32_t k = 0; k < K / 16; k++) {
        uint32_t a[2][4];
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) weights.load(a[half], half, shared, half * 64 + warp * 16, k);
#pragma unroll
        for (uint32_t n = 0; n < WIDTH / 16; n++) {
            if (n * 16 >= count) break;
            uint32_t b[4];
            const uint32_t row = n * 16 + lane / 16 * 8 + lane % 8;
            ptx::load_tiles(b, shared + WEIGHT_BYTES<Weights> + spread(row, k * 2 + lane / 8 % 2));
#pragma unroll
            for (uint32_t half = 0; half < 2; half++) {
                ptx::multiply(sums.half[half][2 * n], a[half], b[0], b[1]);
                ptx::multiply(sums.half[half][2 * n + 1], a[half], b[2], b[3]);
            }
        }
    }
}

DEV void put(uint32_t row, uint32_t feature, float value) {
    bf16 *tile = (bf16 *)ptx::shared();
    tile[row * 128 + ((feature / 8) ^ (row % 8)) * 8 + feature % 8] = narrow(value);
}

/// Straight to where it belongs: a tile of floats is larger than its place in shared memory.
DEV void put_exact(const FfnParams &p, const Tile &tile, uint32_t row, uint32_t feature, float value) {
    const uint32_t m = tile.m * 128 + feature;
    if (m < p.hidden) p.exact[(uint64_t)(tile.pair + row) * p.hidden + m] = value;
}

/// Calls put(row, feature, sum, sum of the second half) for all that this thread has of the tile's rows.
template <typename Put> DEV void for_each_sum(const Sums &sums, uint32_t count, Put put) {
    const uint32_t lane = ptx::thread() % 32, warp = ptx::thread() / 32;
#pragma unroll
    for (uint32_t n = 0; n < WIDTH / 8; n++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t row = n * 8 + lane % 4 * 2 + i % 2;
            const uint32_t feature = warp * 16 + lane / 4 + i / 2 * 8;
            if (row < count) put(row, feature, sums.half[0][n][i], sums.half[1][n][i]);
        }
    }
}

/// Lays the tile out in shared memory as rows of 128 features: the warps' sums, SwiGLU or weight applied.
DEV void lay_out(const FfnParams &p, const Tile &tile, const Sums &sums) {
    for_each_sum(sums, tile.count, [&](uint32_t row, uint32_t feature, float first, float second) {
        if (tile.down && p.exact) {
            put_exact(p, tile, row, feature, first);
            put_exact(p, tile, row, 64 + feature, second);
        } else if (tile.down) {
            const float weight = p.weight ? p.weight[tile.pair + row] : 1.0f;
            put(row, feature, first * weight);
            put(row, 64 + feature, second * weight);
        } else {
            put(row, feature, silu(first) * second);
        }
    });
}

/// Takes the rows that were laid out to `to`, `chunks` eights of each, as far as there are features.
DEV void write_out(bf16 *to, uint32_t stride, uint32_t count, uint32_t chunks, uint32_t features) {
    const Eight *from = (const Eight *)ptx::shared();
    for (uint32_t i = ptx::thread(); i < count * chunks; i += THREADS) {
        const uint32_t row = i / chunks, chunk = i % chunks;
        if (chunk * 8 >= features) continue;
        *(Eight *)(to + (uint64_t)row * stride + chunk * 8) = from[row * 16 + (chunk ^ (row % 8))];
    }
}

DEV void write_out(const FfnParams &p, const Tile &tile) {
    const uint32_t chunks = tile.down ? 16 : 8, stride = tile.down ? p.hidden : p.inter, m = tile.m * chunks * 8;
    write_out((tile.down ? p.out : p.act) + (uint64_t)tile.pair * stride + m, stride, tile.count, chunks, stride - m);
}

/// The whole depth of a tile of `count` rows; shared memory is free behind it.
template <typename Weights>
DEV void sum_up(Sums &sums, const Copy<Weights> &copy, Weights weights, uint32_t count, uint32_t inner) {
    constexpr uint32_t STAGE = STAGE_BYTES<Weights>;
    const uint32_t shared = ptx::address(ptx::shared()), steps = ceil_div(inner, K);
    for (uint32_t s = 0; s < STAGES - 1; s++) {
        if (s < steps) copy.stage(shared + s * STAGE, count, inner, s * K);
        ptx::copy_commit();
    }
    for (uint32_t step = 0; step < steps; step++) {
        weights.reach(step * K);
        ptx::copy_wait<STAGES - 2>();
        ptx::sync_block();
        const uint32_t ahead = step + STAGES - 1;
        if (ahead < steps) copy.stage(shared + ahead % STAGES * STAGE, count, inner, ahead * K);
        ptx::copy_commit();
        multiply_stage(weights, sums, shared + step % STAGES * STAGE, count);
    }
    ptx::copy_wait<0>();
    ptx::sync_block();
}

template <typename Weights> DEV void run_tile(const FfnParams &p, const Tile &tile) {
    Sums sums = {};
    sum_up(sums, copy_of<Weights>(p, tile), Weights(p, tile), tile.count, depth(p, tile));
    lay_out(p, tile, sums);
    ptx::sync_block();
    if (!(tile.down && p.exact)) write_out(p, tile);
}

template <typename Weights> DEV void run(const FfnParams &p) {
    Tile tile;
    for (Tiles tiles(p); tiles.next(tile);) {
        if (tile.down && p.gate) {
            if (ptx::thread() == 0) wait_published(p, tile, Tiles::up_slices(p) * tile.splits);
            ptx::sync_block();
        }
        run_tile<Weights>(p, tile);
        ptx::fence_device();
        ptx::sync_block();
        if (!tile.down && ptx::thread() == 0) {
            ptx::fence_device();
            ptx::add(p.ready + tile.group, 1);
        }
    }
    if (ptx::thread() == 0) leave(p);
}

}  // namespace portable

/// Grid: at most as many blocks as are resident at once.
KERNEL(portable::THREADS, 2) ffn_portable(GRID_CONSTANT FfnParams p) { portable::run<portable::Halves>(p); }

/// The same over weights in fp8.
KERNEL(portable::THREADS, 2) ffn_portable_fp8(GRID_CONSTANT FfnParams p) { portable::run<portable::Codes>(p); }
