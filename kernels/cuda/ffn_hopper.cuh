// The grouped SwiGLU for Hopper: weights stream through the tensor copy engine, products run on warpgroups.
//
// Weights are the left operand (64 output features an instruction), rows the right one, so that a tile is as
// wide as its rows need (8 to 128) and a few rows cost few products. A block has twelve warps:
//   warp 0        copies weight tiles, as far ahead as there are free stages, also past a wait for rows
//   warps 1..3    gather the rows, sixteen bytes a thread, straight from the row list
//   warps 4..11   two warpgroups; each multiplies two slices of 64 features with all rows of the tile
//
// Weights are bf16 that the products read from shared memory, or E4M3 codes that the warps turn into bf16 in registers
// first: the same products in the same order, with the same bits.
#pragma once

#include "fp8.cuh"
#include "wgmma.cuh"

namespace hopper {

constexpr uint32_t STAGES = 4;
constexpr uint32_t K = 64;                         // inner elements a stage: rows of 128 bytes
constexpr uint32_t WIDTH = 128;                    // most rows of a tile
constexpr uint32_t ROWS_BYTES = WIDTH * K * 2;
constexpr uint32_t OUT_BYTES = WIDTH * 64 * 2;     // a warpgroup's outgoing tile: 64 features of every row
constexpr uint32_t THREADS = 384;
constexpr uint32_t GATHER_THREADS = 96;
constexpr uint32_t CONSUMER_WARPS = 8;
constexpr uint32_t PUBLICATIONS = 2;               // of a gate-up tile: one by each warpgroup

/// Shared memory and the place in the ring of stages; `BYTES` of a weight.
template <uint32_t BYTES> struct Ring {
    static constexpr uint32_t HALF_BYTES = 128 * K * BYTES;  // one box of weights: 128 features
    static constexpr uint32_t STAGE_BYTES = 2 * HALF_BYTES + ROWS_BYTES;
    /// Beside operands made of codes a warpgroup has no registers for the sums of more rows.
    static constexpr uint32_t MOST = BYTES == 1 ? 64 : WIDTH;
    typedef Walk<128, 256, MOST> Tiles;
    uint32_t base;
    uint32_t stage = 0;
    uint32_t parity = 0;

    DEV explicit Ring(uint32_t shared) : base(shared) {}
    DEV uint32_t weights() const { return base + stage * STAGE_BYTES; }
    DEV uint32_t rows() const { return weights() + 2 * HALF_BYTES; }
    DEV uint32_t outgoing(uint32_t group) const { return base + STAGES * STAGE_BYTES + group * OUT_BYTES; }
    DEV uint32_t barriers() const { return base + STAGES * STAGE_BYTES + 2 * OUT_BYTES; }
    DEV uint32_t full(uint32_t s) const { return barriers() + s * 8; }
    DEV uint32_t empty(uint32_t s) const { return barriers() + (STAGES + s) * 8; }
    DEV void step() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

DEV uint32_t depth(const FfnParams &p, const Tile &tile) { return tile.down ? p.inter : p.hidden; }

// ---- Warp 0: weights --------------------------------------------------------------------------------

template <typename Ring>
DEV void stream_weights(const FfnParams &p, const TensorMap &gate, const TensorMap &up, const TensorMap &down,
                        Ring ring) {
    constexpr uint32_t HALF_BYTES = Ring::HALF_BYTES;
    Tile tile;
    for (typename Ring::Tiles tiles(p); tiles.next(tile);) {
        const TensorMap *first = tile.down ? &down : &gate;
        const TensorMap *second = tile.down ? &down : &up;
        const uint32_t row = tile.slot * (tile.down ? p.hidden : p.inter) + tile.m * (tile.down ? 256 : 128);
        const uint32_t second_row = tile.down ? row + 128 : row;
        for (uint32_t k = 0; k < depth(p, tile); k += K) {
            ptx::barrier_wait(ring.empty(ring.stage), ring.parity ^ 1);
            ptx::barrier_expect(ring.full(ring.stage), 2 * HALF_BYTES);
            ptx::copy_box(ring.weights(), first, ring.full(ring.stage), k, row);
            ptx::copy_box(ring.weights() + HALF_BYTES, second, ring.full(ring.stage), k, second_row);
            ring.step();
        }
    }
}

// ---- Warps 1..3: rows -------------------------------------------------------------------------------

constexpr uint32_t GATHER_PASSES = (WIDTH * 8 + GATHER_THREADS - 1) / GATHER_THREADS;
constexpr uint32_t GATHER_STRIDE = GATHER_THREADS / 8;  // rows between a thread's passes

/// Copies in flight whose stages the consumers have not been told of.
struct Announcer {
    uint32_t pending = 0;
    uint32_t stage = 0;

    template <typename Ring> DEV void tell(const Ring &ring) {
        ptx::fence_async_shared();
        ptx::barrier_arrive(ring.full(stage));
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        pending--;
    }
    template <typename Ring> DEV void tell_all(const Ring &ring) {
        ptx::copy_wait<0>();
        while (pending > 0) tell(ring);
    }
};

/// A tile is padded with zero rows to a width that the products come in.
DEV uint32_t padded(uint32_t count) {
    return count <= 8 ? 8 : count <= 16 ? 16 : count <= 32 ? 32 : count <= 64 ? 64 : count <= 96 ? 96 : 128;
}

template <typename Ring>
DEV void gather_tile(const FfnParams &p, const Tile &tile, uint32_t thread, Ring &ring, Announcer &announcer) {
    const uint32_t inner = depth(p, tile), width = padded(tile.count);
    const bf16 *source = tile.down ? p.act : p.x;
    const uint32_t chunk = thread % 8, first = thread / 8;
    uint32_t row[GATHER_PASSES];
#pragma unroll
    for (uint32_t i = 0; i < GATHER_PASSES; i++) {
        const uint32_t r = first + i * GATHER_STRIDE;
        row[i] = r >= tile.count ? 0 : tile.down || p.dense ? tile.pair + r : p.row[tile.pair + r];
    }
    for (uint32_t k = chunk * 8; k < ceil_div(inner, K) * K; k += K) {
        if (!ptx::barrier_test(ring.empty(ring.stage), ring.parity ^ 1)) {
            announcer.tell_all(ring);
            ptx::barrier_wait(ring.empty(ring.stage), ring.parity ^ 1);
        }
#pragma unroll
        for (uint32_t i = 0; i < GATHER_PASSES; i++) {
            const uint32_t r = first + i * GATHER_STRIDE;
            const bool valid = r < tile.count && k < inner;
            const bf16 *from = valid ? source + (uint64_t)row[i] * inner + k : source;
            if (r < width) ptx::copy16(ring.rows() + r * 128 + ((chunk ^ (r % 8)) * 16), from, valid);
        }
        ptx::copy_commit();
        announcer.pending++;
        ring.step();
        if (announcer.pending == STAGES - 1) {
            ptx::copy_wait<STAGES - 2>();
            announcer.tell(ring);
        }
    }
}

template <typename Ring> DEV void gather_rows(const FfnParams &p, Ring ring) {
    const uint32_t thread = ptx::thread() - 32;
    Announcer announcer;
    Tile tile;
    for (typename Ring::Tiles tiles(p); tiles.next(tile);) {
        if (tile.down && p.gate) {
            announcer.tell_all(ring);
            if (thread % 32 == 0) wait_published(p, tile, PUBLICATIONS * Ring::Tiles::up_slices(p) * tile.splits);
            ptx::sync_warp();
        }
        gather_tile(p, tile, thread, ring, announcer);
    }
    announcer.tell_all(ring);
    ptx::sync_named(3, GATHER_THREADS);
    if (thread == 0) leave(p);
}

// ---- Warps 4..11: products ---------------------------------------------------------------------------

/// Moves 64 features of every row from the registers of a warpgroup to `to`, through shared memory so that a
/// row leaves as whole lines. `value(j, half, low)` is a packed pair of rows 8j + 2 (lane % 4) and the next.
template <int N, typename Value>
DEV void store(uint32_t group, uint32_t shared, bf16 *to, uint32_t stride, uint32_t count, uint32_t features,
               Value value) {
    const uint32_t thread = ptx::thread() % 128, lane = thread % 32, warp = thread / 32;
    const uint32_t chunk = warp * 2 + lane / 8 % 2;
    ptx::sync_named(1 + group, 128);
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        const uint32_t row = j * 8 + lane % 8;
        ptx::store_tiles_transposed(shared + row * 128 + ((chunk ^ (row % 8)) * 16), value(j, 0), value(j, 1));
    }
    ptx::sync_named(1 + group, 128);
    const char *bytes = ptx::shared() + (shared - ptx::address(ptx::shared()));
    for (uint32_t i = thread; i < count * 8; i += 128) {
        const uint32_t row = i / 8, c = i % 8;
        if (c * 8 >= features) continue;
        *(Eight *)(to + (uint64_t)row * stride + c * 8) = *(const Eight *)(bytes + row * 128 + ((c ^ (row % 8)) * 16));
    }
}

DEV uint32_t features_left(uint32_t all, uint32_t from) { return from >= all ? 0 : all - from; }

template <int N, typename Ring>
DEV void finish_up(const FfnParams &p, const Tile &tile, uint32_t group, const Ring &ring, const float (&gate)[N / 2],
                   const float (&up)[N / 2]) {
    const uint32_t m = tile.m * 128 + group * 64;
    auto value = [&](int j, int half) {
        const int i = 4 * j + 2 * half;
        return ptx::pack_bf16(silu(gate[i]) * up[i], silu(gate[i + 1]) * up[i + 1]);
    };
    store<N>(group, ring.outgoing(group), p.act + (uint64_t)tile.pair * p.inter + m, p.inter, tile.count,
             features_left(p.inter, m), value);
    ptx::fence_device();
    ptx::sync_named(1 + group, 128);
    if (ptx::thread() % 128 == 0) {
        ptx::fence_device();
        ptx::add(p.ready + tile.group, 1);
    }
}

template <int N, typename Ring>
DEV void finish_down(const FfnParams &p, const Tile &tile, uint32_t group, uint32_t half, const Ring &ring,
                     const float (&sum)[N / 2]) {
    const uint32_t m = tile.m * 256 + half * 128 + group * 64, column = ptx::thread() % 4 * 2;
    auto weight = [&](uint32_t n) { return n < tile.count && p.weight ? p.weight[tile.pair + n] : 1.0f; };
    auto value = [&](int j, int rows) {
        const int i = 4 * j + 2 * rows;
        const uint32_t n = 8 * j + column;
        return ptx::pack_bf16(sum[i] * weight(n), sum[i + 1] * weight(n + 1));
    };
    store<N>(group, ring.outgoing(group), p.out + (uint64_t)tile.pair * p.hidden + m, p.hidden, tile.count,
             features_left(p.hidden, m), value);
}

/// Weights that are multiplied as they lie in shared memory.
struct Halves {
    static constexpr uint32_t BYTES = 2;

    DEV Halves(const FfnParams &, const Tile &) {}
    DEV void reach(uint32_t) {}

    /// Starts the products of a stage; those of the stage before are done then.
    template <int N>
    DEV void multiply(float (&a)[N / 2], float (&b)[N / 2], const Ring<BYTES> &ring, uint32_t group) {
        const uint64_t left = operand(ring.weights() + group * 64 * 128);
        const uint64_t right = operand(ring.rows());
        ptx::wgmma_fence();
#pragma unroll
        for (uint32_t k = 0; k < K / 16; k++) {
            wgmma<N>(a, left + k * 2, right + k * 2);
            wgmma<N>(b, left + (ring.HALF_BYTES >> 4) + k * 2, right + k * 2);
        }
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>();
    }
};

/// Weights in E4M3. While the products of one step run, the operands of the next are made.
struct Codes : TileCodes {
    uint32_t operands[2][2][4];  // of two steps, each until the products that read them are done

    DEV Codes(const FfnParams &p, const Tile &tile)
        : TileCodes(p, tile, tile.m * (tile.down ? 256 : 128), tile.down ? tile.m * 256 + 128 : tile.m * 128) {}

    template <int N>
    DEV void multiply(float (&a)[N / 2], float (&b)[N / 2], const Ring<BYTES> &ring, uint32_t group) {
        const uint32_t feature = group * 64 + ptx::thread() % 128 / 32 * 16;
        const uint64_t right = operand(ring.rows());
#pragma unroll
        for (uint32_t k = 0; k < K / 16; k++) {
            uint32_t(&left)[2][4] = operands[k % 2];
            ptx::wgmma_wait<1>();
            load(left[0], 0, ring.weights(), feature, k);
            load(left[1], 1, ring.weights() + ring.HALF_BYTES, feature, k);
            ptx::wgmma_fence();
            wgmma<N>(a, left[0], right + k * 2);
            wgmma<N>(b, left[1], right + k * 2);
            ptx::wgmma_commit();
        }
    }
};

template <int N, typename Weights>
DEV void multiply_tile(const FfnParams &p, const Tile &tile, uint32_t group, Ring<Weights::BYTES> &ring) {
    Weights weights(p, tile);
    float a[N / 2], b[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) a[i] = b[i] = 0.0f;
    const uint32_t steps = ceil_div(depth(p, tile), K);
    uint32_t last = 0;
    for (uint32_t step = 0; step < steps; step++) {
        weights.reach(step * K);
        ptx::barrier_wait(ring.full(ring.stage), ring.parity);
        weights.template multiply<N>(a, b, ring, group);
        if (step > 0 && ptx::thread() % 32 == 0) ptx::barrier_arrive(ring.empty(last));
        last = ring.stage;
        ring.step();
    }
    ptx::wgmma_wait<0>();
    if (ptx::thread() % 32 == 0) ptx::barrier_arrive(ring.empty(last));
    if (tile.down) {
        finish_down<N>(p, tile, group, 0, ring, a);
        finish_down<N>(p, tile, group, 1, ring, b);
    } else {
        finish_up<N>(p, tile, group, ring, a, b);
    }
}

template <typename Weights> DEV void multiply(const FfnParams &p, Ring<Weights::BYTES> ring) {
    constexpr uint32_t MOST = Ring<Weights::BYTES>::MOST;
    const uint32_t group = ptx::thread() / 128 - 1;
    Tile tile;
    for (typename Ring<Weights::BYTES>::Tiles tiles(p); tiles.next(tile);) {
        switch (padded(tile.count)) {
            case 8: multiply_tile<8, Weights>(p, tile, group, ring); break;
            case 16: multiply_tile<16, Weights>(p, tile, group, ring); break;
            case 32: multiply_tile<32, Weights>(p, tile, group, ring); break;
            case 64: multiply_tile<64, Weights>(p, tile, group, ring); break;
            case 96: multiply_tile<MOST < 96 ? MOST : 96, Weights>(p, tile, group, ring); break;
            default: multiply_tile<MOST, Weights>(p, tile, group, ring);
        }
    }
}

template <typename Weights>
DEV void run(const FfnParams &p, const TensorMap &gate, const TensorMap &up, const TensorMap &down) {
    const uint32_t shared = (ptx::address(ptx::shared()) + 1023) / 1024 * 1024;
    const Ring<Weights::BYTES> ring(shared);
    if (ptx::thread() == 0) {
        for (uint32_t s = 0; s < STAGES; s++) {
            ptx::barrier_init(ring.full(s), 1 + GATHER_THREADS);
            ptx::barrier_init(ring.empty(s), CONSUMER_WARPS);
        }
        ptx::fence_barrier_init();
    }
    ptx::sync_block();
    if (ptx::thread() < 128) {
        ptx::registers_down<88>();
        if (ptx::thread() == 0) stream_weights(p, gate, up, down, ring);
        if (ptx::thread() >= 32) gather_rows(p, ring);
    } else {
        ptx::registers_up<208>();
        multiply<Weights>(p, ring);
    }
}

}  // namespace hopper

/// Grid: at most one block for each multiprocessor. The maps: boxes of 64 x 128 of the weights, swizzled over 128 bytes.
KERNEL(hopper::THREADS, 1)
ffn_hopper(GRID_CONSTANT FfnParams p, GRID_CONSTANT TensorMap gate, GRID_CONSTANT TensorMap up,
           GRID_CONSTANT TensorMap down) {
    hopper::run<hopper::Halves>(p, gate, up, down);
}

/// The same over weights in fp8, swizzled over 64 bytes.
KERNEL(hopper::THREADS, 1)
ffn_hopper_fp8(GRID_CONSTANT FfnParams p, GRID_CONSTANT TensorMap gate, GRID_CONSTANT TensorMap up,
               GRID_CONSTANT TensorMap down) {
    hopper::run<hopper::Codes>(p, gate, up, down);
}
