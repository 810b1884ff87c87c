// A GPU in a box: runs the kernels' own source on a CPU, thread by thread, so that indexing, barriers and
// asynchronous copies are tested where there is no GPU. It knows nothing of speed.
//
// Every GPU thread is a fiber; a seeded scheduler picks the next one at each synchronisation. Asynchronous work
// (cp.async, the tensor copy engine, wgmma) happens at issue or as late as the rules allow, by that seed, and
// the tensor cores see ordinary shared-memory writes only after the writer's proxy fence. A missing wait or
// fence thus shows as a wrong result under some seed, and a circular wait as an error.
#pragma once

#include <stdint.h>
#include <string.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

#define DEV inline
#define KERNEL(threads, blocks) inline void
#define GRID_CONSTANT const

/// A 2-D tensor for the copy engine: boxes of box_x * box_y elements of some bytes, swizzled over a row's 128 or 64 bytes.
struct alignas(64) TensorMap {
    const char *base;
    uint64_t width, height;
    uint32_t box_x, box_y, bytes;
};

namespace machine {

constexpr uint32_t SHARED_LIMIT = 232448;  // what a Hopper block may have

[[noreturn]] void fail(const char *what);

struct Barrier {
    uint32_t expected = 0, pending = 0, phase = 0;
    int64_t bytes = 0;
    void settle();
};

/// What a warp's lanes meet in: the last one to come does the work for all.
struct Meeting {
    uint32_t arrived = 0;
    uint64_t generation = 0;
};

struct Warp {
    Meeting meeting;
    const void *in[32];
    void *out[32];
};

struct Block {
    uint32_t x, y, threads;
    uint32_t bytes;             // of shared memory
    char *shared;               // as ordinary instructions see it
    std::vector<char> async;    // as the tensor cores see it
    std::vector<Warp> warps;
    std::map<uint32_t, Meeting> named;
    std::map<uint32_t, Barrier> barriers;
    std::vector<std::function<void()>> engine;  // copies the tensor engine has not done yet
    uint32_t live = 0;
};

struct Thread {
    Block *block;
    uint32_t index;
    std::function<bool()> ready;               // null: runnable
    std::vector<std::vector<std::function<void()>>> copies{1}, products{1};
    std::vector<uint32_t> unfenced;            // sixteen-byte pieces written and not yet fenced
    bool done = false;
    void *context = nullptr;
};

extern Thread *self;
extern uint32_t grid;
extern std::mt19937 random;

/// Runs a kernel on blocks x blocks_y blocks, all resident at once.
void launch(uint32_t blocks, uint32_t blocks_y, uint32_t threads, uint32_t shared, uint32_t seed,
            const std::function<void()> &kernel);
void wait_until(std::function<bool()> ready);
void meet(Meeting &meeting, uint32_t threads, const std::function<void()> &work);
void copy_box(uint32_t to, const TensorMap *map, uint32_t barrier, uint32_t x, uint32_t y);
void product(float *d, int n, uint64_t a, uint64_t b);
void product(float *d, int n, const uint32_t *const *a, uint64_t b);

inline char *at(uint32_t address, uint32_t bytes) {
    if (address % (bytes < 16 ? bytes : 16) || address + bytes > self->block->bytes) fail("bad shared address");
    return self->block->shared + address;
}
inline Warp &warp() { return self->block->warps[self->index / 32]; }
inline bool late() { return random() % 2; }

/// One warp-wide operation: `work` maps all lanes' inputs to all lanes' outputs.
template <typename In, typename Out, typename Work> Out together(const In &in, Work work) {
    Warp &w = warp();
    const uint32_t lane = self->index % 32;
    Out out;
    w.in[lane] = &in;
    w.out[lane] = &out;
    meet(w.meeting, 32, [&] {
        const In *ins[32];
        Out *outs[32];
        for (int l = 0; l < 32; l++) ins[l] = (const In *)w.in[l], outs[l] = (Out *)w.out[l];
        work(ins, outs);
    });
    return out;
}

inline void retire(std::vector<std::vector<std::function<void()>>> &groups, size_t keep) {
    while (groups.size() > keep + 1) {
        for (auto &work : groups.front()) work();
        groups.erase(groups.begin());
    }
}

}  // namespace machine

namespace ptx {

using machine::self;

inline uint32_t thread() { return self->index; }
inline uint32_t block() { return self->block->x; }
inline uint32_t block_y() { return self->block->y; }
inline uint32_t blocks() { return machine::grid; }
inline uint32_t block_threads() { return self->block->threads; }
inline char *shared() { return self->block->shared; }
inline uint32_t address(const void *p) { return (uint32_t)((const char *)p - self->block->shared); }

inline uint32_t bits(float x) {
    uint32_t y;
    memcpy(&y, &x, 4);
    return y;
}
inline float from_bits(uint32_t x) {
    float y;
    memcpy(&y, &x, 4);
    return y;
}
inline float exp2(float x) { return ::exp2f(x); }
inline float divide(float a, float b) { return a / b; }
inline float root(float a) { return ::sqrtf(a); }
inline uint32_t round_bf16(float x) {
    const uint32_t b = bits(x);
    if ((b & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (b + 0x7fff + (b >> 16 & 1)) >> 16;
}
inline uint32_t pack_bf16(float low, float high) { return round_bf16(low) | round_bf16(high) << 16; }

inline void sync_block() { machine::meet(self->block->named[0], self->block->threads, [] {}); }
inline void sync_named(uint32_t barrier, uint32_t threads) {
    machine::meet(self->block->named[barrier], threads, [] {});
}
inline void sync_warp() { machine::meet(machine::warp().meeting, 32, [] {}); }
template <typename T> T shuffle_from(T x, uint32_t lane, bool exclusive) {
    struct In {
        T x;
        uint32_t lane;
    };
    const uint32_t from = exclusive ? (self->index % 32) ^ lane : lane % 32;
    return machine::together<In, T>({x, from}, [](const In *const *in, T **out) {
        for (int l = 0; l < 32; l++) *out[l] = in[in[l]->lane]->x;
    });
}
inline float shuffle_xor(float x, uint32_t mask) { return shuffle_from(x, mask, true); }
inline uint32_t shuffle_xor(uint32_t x, uint32_t mask) { return shuffle_from(x, mask, true); }
inline float shuffle(float x, uint32_t lane) { return shuffle_from(x, lane, false); }
inline uint32_t shuffle(uint32_t x, uint32_t lane) { return shuffle_from(x, lane, false); }

inline void fence_device() {}
inline uint32_t add(uint32_t *counter, uint32_t n) {
    const uint32_t before = *counter;
    *counter += n;
    machine::wait_until(nullptr);
    return before;
}
inline uint32_t load_acquire(const uint32_t *p) { return *(const volatile uint32_t *)p; }
inline void pause() { machine::wait_until(nullptr); }

inline void copy16(uint32_t to, const void *from, bool valid) {
    machine::at(to, 16);
    machine::Thread *by = self;
    auto work = [=] {
        char *target = by->block->shared + to;
        if (valid) memcpy(target, from, 16);
        else memset(target, 0, 16);
        by->unfenced.push_back(to);
    };
    if (machine::late()) self->copies.back().push_back(work);
    else work();
}
inline void copy_commit() { self->copies.emplace_back(); }
template <int N> void copy_wait() { machine::retire(self->copies, N); }

inline void load_tiles(uint32_t (&r)[4], uint32_t row) {
    struct Four {
        uint32_t r[4];
    };
    const Four four = machine::together<uint32_t, Four>(row, [](const uint32_t *const *rows, Four **out) {
        for (int tile = 0; tile < 4; tile++)
            for (int l = 0; l < 32; l++)
                memcpy(&out[l]->r[tile], machine::at(*rows[tile * 8 + l / 4], 16) + l % 4 * 4, 4);
    });
    memcpy(r, four.r, 16);
}
inline void load_tiles_transposed(uint32_t (&r)[4], uint32_t row) {
    struct Four {
        uint16_t r[8];
    };
    const Four four = machine::together<uint32_t, Four>(row, [](const uint32_t *const *rows, Four **out) {
        for (int tile = 0; tile < 4; tile++)
            for (int l = 0; l < 32; l++)
                for (int i = 0; i < 2; i++)
                    memcpy(&out[l]->r[tile * 2 + i], machine::at(*rows[tile * 8 + l % 4 * 2 + i], 16) + l / 4 * 2, 2);
    });
    memcpy(r, four.r, 16);
}
inline float widened(uint32_t pair, int high) { return from_bits(high ? pair & 0xffff0000u : pair << 16); }
inline void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    struct In {
        uint32_t a[4], b[2];
    };
    struct Out {
        float d[4];
    };
    In in;
    memcpy(in.a, a, 16);
    in.b[0] = b0, in.b[1] = b1;
    const Out sum = machine::together<In, Out>(in, [](const In *const *in, Out **out) {
        auto left = [&](int m, int k) { return widened(in[m % 8 * 4 + k % 8 / 2]->a[m / 8 + k / 8 * 2], k % 2); };
        auto right = [&](int k, int n) { return widened(in[n * 4 + k % 8 / 2]->b[k / 8], k % 2); };
        for (int l = 0; l < 32; l++)
            for (int i = 0; i < 4; i++) {
                out[l]->d[i] = 0;
                for (int k = 0; k < 16; k++)
                    out[l]->d[i] += left(l / 4 + i / 2 * 8, k) * right(k, l % 4 * 2 + i % 2);
            }
    });
    for (int i = 0; i < 4; i++) d[i] += sum.d[i];
}

inline void barrier_init(uint32_t barrier, uint32_t arrivals) {
    machine::at(barrier, 8);
    machine::Barrier &b = self->block->barriers[barrier];
    b.expected = b.pending = arrivals;
}
inline void fence_barrier_init() {}
inline machine::Barrier &barrier_at(uint32_t barrier) {
    if (!self->block->barriers.count(barrier)) machine::fail("no barrier at this address");
    return self->block->barriers[barrier];
}
inline void barrier_expect(uint32_t barrier, uint32_t bytes) {
    machine::Barrier &b = barrier_at(barrier);
    if (b.pending == 0) machine::fail("too many arrivals");
    b.bytes += bytes;
    b.pending--;
    b.settle();
    machine::wait_until(nullptr);
}
inline void barrier_arrive(uint32_t barrier) { barrier_expect(barrier, 0); }
inline bool barrier_test(uint32_t barrier, uint32_t parity) { return barrier_at(barrier).phase % 2 != parity; }
inline void barrier_wait(uint32_t barrier, uint32_t parity) {
    machine::Barrier *b = &barrier_at(barrier);
    machine::wait_until([=] { return b->phase % 2 != parity; });
}
inline void fence_async_shared() {
    machine::Block &b = *self->block;
    for (uint32_t to : self->unfenced) memcpy(b.async.data() + to, b.shared + to, 16);
    self->unfenced.clear();
}
inline void prefetch(const TensorMap *) {}
inline void copy_box(uint32_t to, const TensorMap *map, uint32_t barrier, uint32_t x, uint32_t y) {
    machine::copy_box(to, map, barrier, x, y);
}
template <int N> void registers_down() {}
template <int N> void registers_up() {}

inline void wgmma_fence() {}
inline void wgmma_commit() { self->products.emplace_back(); }
/// Aligned: a warp's lanes leave together.
template <int N> void wgmma_wait() {
    machine::retire(self->products, N);
    sync_warp();
}
inline void start_product(const std::function<void()> &work) {
    // In order: a product may not overtake an earlier one on the same sums.
    if (machine::late() || self->products.size() > 1 || !self->products.back().empty())
        self->products.back().push_back(work);
    else work();
}
template <int N> void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b) {
    float *sums = d;
    start_product([=] { machine::product(sums, N, a, b); });
}
/// The left operand is read from registers when the product happens: four lanes hold a row.
template <int N> void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) {
    struct Quad {
        const uint32_t *a[4];
    };
    const uint32_t *mine = a;
    const Quad quad = machine::together<const uint32_t *, Quad>(mine, [](const uint32_t *const *const *in, Quad **out) {
        for (int l = 0; l < 32; l++)
            for (int i = 0; i < 4; i++) out[l]->a[i] = *in[l / 4 * 4 + i];
    });
    float *sums = d;
    start_product([=] { machine::product(sums, N, quad.a, b); });
}
inline void store_tiles_transposed(uint32_t row, uint32_t r0, uint32_t r1) {
    struct In {
        uint32_t row, r[2];
    };
    struct Out {};
    machine::together<In, Out>({row, {r0, r1}}, [](const In *const *in, Out **) {
        for (int tile = 0; tile < 2; tile++)
            for (int l = 0; l < 32; l++)
                for (int i = 0; i < 2; i++) {
                    const uint16_t value = (uint16_t)(in[l]->r[tile] >> (16 * i));
                    memcpy(machine::at(in[tile * 8 + l % 4 * 2 + i]->row, 16) + l / 4 * 2, &value, 2);
                }
    });
}

}  // namespace ptx
