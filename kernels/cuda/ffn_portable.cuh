// The grouped SwiGLU for any GPU since Ampere: the same parameters and the same list of tiles, products by warps.
//
// A block of four warps takes 64 gate and 64 up features (or 128 down features) of up to 64 rows. Each warp
// multiplies 16 features of either half with all rows. Copies run two stages ahead of the products.
#pragma once

#include "ffn.cuh"

namespace portable {

constexpr uint32_t STAGES = 3;
constexpr uint32_t K = 64;
constexpr uint32_t WIDTH = 64;
constexpr uint32_t THREADS = 128;
constexpr uint32_t WEIGHT_BYTES = 128 * K * 2;  // features 0..63 are the first half, 64..127 the second
constexpr uint32_t STAGE_BYTES = WEIGHT_BYTES + WIDTH * K * 2;
constexpr uint32_t SHARED_BYTES = STAGES * STAGE_BYTES;
constexpr uint32_t ROW_PASSES = WIDTH * 8 / THREADS;

typedef Walk<64, 128, WIDTH> Tiles;

DEV uint32_t depth(const FfnParams &p, const Tile &tile) { return tile.down ? p.inter : p.hidden; }
/// Where sixteen bytes of a 128-byte row lie: spread so that eight rows of one chunk meet eight bank groups.
DEV uint32_t spread(uint32_t row, uint32_t chunk) { return row * 128 + ((chunk ^ (row % 8)) * 16); }

/// What one thread copies of a tile: chunk `thread % 8` of rows thread / 8 + 16 i.
struct Copy {
    const bf16 *weights[2];  // the first feature of either half
    uint32_t features[2];    // how many of them exist
    const bf16 *rows;
    uint32_t stride;         // of rows
    uint32_t row[ROW_PASSES];

    /// 128 features of one matrix from feature m on, of which `left` exist.
    DEV void take(const bf16 *matrix, uint32_t m, uint32_t left, uint32_t inner) {
        weights[0] = matrix + (uint64_t)m * inner;
        weights[1] = weights[0] + (uint64_t)64 * inner;
        features[0] = left < 64 ? left : 64;
        features[1] = left < 64 ? 0 : left < 128 ? left - 64 : 64;
    }

    DEV void stage(uint32_t to, uint32_t count, uint32_t inner, uint32_t k) const {
        const uint32_t chunk = ptx::thread() % 8, first = ptx::thread() / 8;
        k += chunk * 8;
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t r = first + i % 4 * 16, half = i / 4;
            const bool valid = r < features[half] && k < inner;
            const bf16 *from = valid ? weights[half] + (uint64_t)r * inner + k : rows;
            ptx::copy16(to + spread(half * 64 + r, chunk), from, valid);
        }
#pragma unroll
        for (uint32_t i = 0; i < ROW_PASSES; i++) {
            const uint32_t r = first + i * 16;
            const bool valid = r < count && k < inner;
            const bf16 *from = valid ? rows + (uint64_t)row[i] * stride + k : rows;
            ptx::copy16(to + WEIGHT_BYTES + spread(r, chunk), from, valid);
        }
    }
};

DEV Copy copy_of(const FfnParams &p, const Tile &tile) {
    Copy copy;
    copy.stride = depth(p, tile);
    if (tile.down) {
        const uint32_t m = tile.m * 128;
        copy.take(p.down + (uint64_t)tile.slot * p.hidden * p.inter, m, p.hidden - m, p.inter);
    } else {
        const uint32_t m = tile.m * 64, left = p.inter - m;
        copy.weights[0] = p.gate + ((uint64_t)tile.slot * p.inter + m) * p.hidden;
        copy.weights[1] = p.up + ((uint64_t)tile.slot * p.inter + m) * p.hidden;
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
DEV void multiply_stage(Sums &sums, uint32_t shared, uint32_t count) {
    const uint32_t lane = ptx::thread() % 32, warp = ptx::thread() / 32;
#pragma unroll
    for (uint32_t k = 0; k < K / 16; k++) {
        uint32_t a[2][4];
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t feature = half * 64 + warp * 16 + lane % 16;
            ptx::load_tiles(a[half], shared + spread(feature, k * 2 + lane / 16));
        }
#pragma unroll
        for (uint32_t n = 0; n < WIDTH / 16; n++) {
            if (n * 16 >= count) break;
            uint32_t b[4];
            const uint32_t row = n * 16 + lane / 16 * 8 + lane % 8;
            ptx::load_tiles(b, shared + WEIGHT_BYTES + spread(row, k * 2 + lane / 8 % 2));
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
DEV void sum_up(Sums &sums, const Copy &copy, uint32_t count, uint32_t inner) {
    const uint32_t shared = ptx::address(ptx::shared()), steps = ceil_div(inner, K);
    for (uint32_t s = 0; s < STAGES - 1; s++) {
        if (s < steps) copy.stage(shared + s * STAGE_BYTES, count, inner, s * K);
        ptx::copy_commit();
    }
    for (uint32_t step = 0; step < steps; step++) {
        ptx::copy_wait<STAGES - 2>();
        ptx::sync_block();
        const uint32_t ahead = step + STAGES - 1;
        if (ahead < steps) copy.stage(shared + ahead % STAGES * STAGE_BYTES, count, inner, ahead * K);
        ptx::copy_commit();
        multiply_stage(sums, shared + step % STAGES * STAGE_BYTES, count);
    }
    ptx::copy_wait<0>();
    ptx::sync_block();
}

DEV void run_tile(const FfnParams &p, const Tile &tile) {
    Sums sums = {};
    sum_up(sums, copy_of(p, tile), tile.count, depth(p, tile));
    lay_out(p, tile, sums);
    ptx::sync_block();
    if (!(tile.down && p.exact)) write_out(p, tile);
}

}  // namespace portable

/// Grid: at most as many blocks as are resident at once.
KERNEL(portable::THREADS, 2) ffn_portable(GRID_CONSTANT FfnParams p) {
    using namespace portable;
    Tile tile;
    for (Tiles tiles(p); tiles.next(tile);) {
        if (tile.down && p.gate) {
            if (ptx::thread() == 0) wait_published(p, tile, Tiles::up_slices(p) * tile.splits);
            ptx::sync_block();
        }
        run_tile(p, tile);
        ptx::fence_device();
        ptx::sync_block();
        if (!tile.down && ptx::thread() == 0) {
            ptx::fence_device();
            ptx::add(p.ready + tile.group, 1);
        }
    }
    if (ptx::thread() == 0) leave(p);
}
