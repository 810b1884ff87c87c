// What the two grouped SwiGLU kernels share: their parameters, and the order in which blocks take tiles.
//
// With `dense` there is no list: all rows go through one expert, for what sees every row; without its gate it is a
// plain product with one matrix.
//
// The job: for every pair (expert, row) out[pair] = weight[pair] * down(silu(gate(x[row])) * up(x[row])).
// One launch does a whole layer. Tiles of the first products (gate and up) come first, tiles of the second
// product (down) follow; a block takes every blocks()-th tile of that one list. A down tile waits until all
// gate-up tiles of its expert are published, and those stand earlier in the list, so with every block resident
// no wait is circular. An element is summed over k in one fixed order by one thread whatever the tile's
// width is: a row's bits do not depend on the batch around it.
#pragma once

#include "ptx.cuh"

/// Mirrors `cuda::ffn::Params` in Rust.
struct FfnParams {
    const bf16 *x;           // [rows, hidden]
    const void *gate;        // [slots, inter, hidden], or null with `dense`: the down product of `act` alone
    const void *up;          // [slots, inter, hidden]; all three in bf16, or E4M3 codes for a kernel of fp8
    const void *down;        // [slots, hidden, inter]
    const float *gate_scale; // of each block of the codes: [slots, ceil(inter / 128), ceil(hidden / 128)]
    const float *up_scale;   // the same
    const float *down_scale; // [slots, ceil(hidden / 128), ceil(inter / 128)]
    const uint32_t *slot;    // [groups] which expert's weights a group uses
    const uint32_t *first;   // [groups + 1] a group's pairs are first[g] .. first[g + 1]
    const uint32_t *row;     // [pairs] the row of x
    const float *weight;     // [pairs] the gate weight, or null for ones
    bf16 *act;               // [pairs, inter] scratch
    bf16 *out;               // [pairs, hidden]
    float *exact;            // [pairs, hidden] in the place of `out`, not rounded; of the portable kernel. Or null
    uint32_t *ready;         // [groups + 1] zero before the launch and after it
    uint32_t groups;
    uint32_t hidden;         // a multiple of 8, of 16 with codes
    uint32_t inter;          // the same
    uint32_t dense;          // not 0: one group of this many pairs, pair i is row i, and slot 0
};

DEV uint32_t ceil_div(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

struct Tile {
    bool down;
    uint32_t group;
    uint32_t slot;
    uint32_t pair;    // the first pair
    uint32_t count;   // pairs of this tile, at least 1
    uint32_t m;       // which slice of the output features
    uint32_t splits;  // tiles that share the group's pairs
};

/// One block's way through the list. Every role of the block walks it for itself.
/// UP and DOWN: output features of a tile; WIDTH: its most pairs.
template <uint32_t UP, uint32_t DOWN, uint32_t WIDTH> struct Walk {
    const FfnParams &p;
    uint32_t index;
    uint32_t base = 0;
    uint32_t group = 0;
    bool down;

    DEV explicit Walk(const FfnParams &params) : p(params), index(ptx::block()), down(!params.gate) {}

    DEV static uint32_t up_slices(const FfnParams &p) { return ceil_div(p.inter, UP); }

    DEV bool next(Tile &tile) {
        while (true) {
            const uint32_t slices = down ? ceil_div(p.hidden, DOWN) : up_slices(p);
            for (; group < p.groups; group++) {
                const uint32_t first = p.dense ? 0 : p.first[group];
                const uint32_t pairs = p.dense ? p.dense : p.first[group + 1] - first;
                const uint32_t splits = ceil_div(pairs, WIDTH);
                if (index < base + splits * slices) {
                    place(tile, first, pairs, splits);
                    index += ptx::blocks();
                    return true;
                }
                base += splits * slices;
            }
            if (down) return false;
            down = true;
            group = 0;
        }
    }

    /// Tiles of one slice of weights are neighbours, so that the weights are read from memory once.
    DEV void place(Tile &tile, uint32_t first, uint32_t pairs, uint32_t splits) const {
        const uint32_t width = ceil_div(ceil_div(pairs, splits), 8) * 8;
        const uint32_t start = (index - base) % splits * width;
        tile.down = down;
        tile.group = group;
        tile.slot = p.dense ? 0 : p.slot[group];
        tile.pair = first + start;
        tile.count = pairs - start < width ? pairs - start : width;
        tile.m = (index - base) / splits;
        tile.splits = splits;
    }
};

/// Waits until all publications of the tile's group are there.
DEV void wait_published(const FfnParams &p, const Tile &tile, uint32_t publications) {
    while (ptx::load_acquire(p.ready + tile.group) != publications) ptx::pause();
}

/// By one thread of each block, after the block's last wait: the last one leaves the counters at zero.
DEV void leave(const FfnParams &p) {
    ptx::fence_device();
    if (ptx::add(p.ready + p.groups, 1) + 1 != ptx::blocks()) return;
    for (uint32_t g = 0; g <= p.groups; g++) p.ready[g] = 0;
}
