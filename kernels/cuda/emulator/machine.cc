// The scheduler of the emulated GPU and the parts of it that move or multiply tiles.
#include "machine.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

namespace machine {

Thread *self;
uint32_t grid;
std::mt19937 random;

namespace {

constexpr size_t STACK = 256 << 10;
jmp_buf scheduler;
std::vector<char *> stacks;  // that no fiber is on; most of a launch's time would go into mapping them
const std::function<void()> *running;

/// Starts on its own stack by its context; from then on jumps go in and out, which unlike swapcontext cost no
/// system call.
struct Fiber {
    ucontext_t context;
    jmp_buf place;
    bool started;
    char *stack;
};

void leave_fiber() {
    if (!_setjmp(((Fiber *)self->context)->place)) _longjmp(scheduler, 1);
}

void enter_fiber() {
    Fiber &fiber = *(Fiber *)self->context;
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.context);
}

void body() {
    (*running)();
    self->done = true;
    leave_fiber();
}

void start(Fiber &fiber, Thread &thread) {
    if (stacks.empty()) {
        void *stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack == MAP_FAILED) fail("no memory for a stack");
        stacks.push_back((char *)stack);
    }
    fiber.stack = stacks.back();
    stacks.pop_back();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, body, 0);
    fiber.started = false;
    thread.context = &fiber;
}

/// Lets the copy engine of a block do some of what it has, in any order.
bool turn_engine(Block &block) {
    bool worked = false;
    for (size_t i = 0; i < block.engine.size();) {
        if (random() % 3 == 0) {
            i++;
            continue;
        }
        auto work = block.engine[i];
        block.engine.erase(block.engine.begin() + i);
        work();
        worked = true;
    }
    return worked;
}

void run(std::vector<Thread> &threads, std::vector<Block> &blocks) {
    std::vector<Thread *> order;
    for (Thread &t : threads) order.push_back(&t);
    // Now and then a warp falls far behind the others, as nothing forbids.
    std::vector<uint32_t> stalled(threads.size() / 32 + 1, 0);
    for (uint32_t idle = 0, round = 0; !order.empty(); round++) {
        bool worked = false;
        if (random() % 4 == 0) stalled[random() % stalled.size()] = round + random() % 60;
        for (Block &b : blocks) worked |= turn_engine(b) || !b.engine.empty();
        const size_t offset = random() % order.size(), size = order.size();
        for (size_t i = 0; i < size; i++) {
            Thread *t = order[(i + offset) % size];
            if (t->done || stalled[(t - threads.data()) / 32] > round || (t->ready && !t->ready())) continue;
            // A thread that only yields (it polls memory) is no sign of progress by itself.
            worked |= (bool)t->ready;
            t->ready = nullptr;
            self = t;
            enter_fiber();
            worked |= t->done;
        }
        std::vector<Thread *> left;
        for (Thread *t : order)
            if (!t->done) left.push_back(t);
        order.swap(left);
        idle = worked ? 0 : idle + 1;
        if (idle > 1000) fail("deadlock: every thread waits");
    }
}

}  // namespace

void fail(const char *what) {
    fprintf(stderr, "emulated GPU: %s (block %u, thread %u)\n", what, self ? self->block->x : 0, self ? self->index : 0);
    exit(2);
}

void Barrier::settle() {
    if (pending > 0 || bytes != 0) return;
    pending = expected;
    phase++;
}

void wait_until(std::function<bool()> ready) {
    if (ready && ready() && random() % 4) return;
    self->ready = std::move(ready);
    leave_fiber();
}

void meet(Meeting &meeting, uint32_t threads, const std::function<void()> &work) {
    if (++meeting.arrived == threads) {
        work();
        meeting.arrived = 0;
        meeting.generation++;
        return;
    }
    const uint64_t generation = meeting.generation;
    Meeting *m = &meeting;
    wait_until([=] { return m->generation != generation; });
}

void launch(uint32_t blocks_x, uint32_t blocks_y, uint32_t threads, uint32_t shared, uint32_t seed,
            const std::function<void()> &kernel) {
    if (shared > SHARED_LIMIT) fail("more shared memory than a block may have");
    random.seed(seed);
    grid = blocks_x;
    running = &kernel;
    std::vector<Block> blocks(blocks_x * blocks_y);
    std::vector<Thread> all(blocks.size() * threads);
    std::vector<Fiber> fibers(all.size());
    for (size_t i = 0; i < blocks.size(); i++) {
        Block &b = blocks[i];
        b.x = i % blocks_x, b.y = i / blocks_x, b.threads = threads;
        b.bytes = shared;
        b.shared = (char *)aligned_alloc(1024, (shared / 1024 + 1) * 1024);
        memset(b.shared, 0xff, shared);  // NaN, so that a read of nothing shows
        b.async.assign(shared, (char)0xff);
        b.warps.resize((threads + 31) / 32);
        for (uint32_t t = 0; t < threads; t++) {
            Thread &thread = all[i * threads + t];
            thread.block = &b, thread.index = t;
            start(fibers[i * threads + t], thread);
        }
    }
    run(all, blocks);
    for (Fiber &f : fibers) stacks.push_back(f.stack);
    for (Block &b : blocks) free(b.shared);
    self = nullptr;
}

void copy_box(uint32_t to, const TensorMap *map, uint32_t barrier, uint32_t x, uint32_t y) {
    if (to % 1024) fail("a swizzled box wants 1024-byte alignment");
    Block *block = self->block;
    const uint32_t row_bytes = map->box_x * map->bytes;
    at(to, 16), at(to + row_bytes * map->box_y - 16, 16);
    block->engine.push_back([=, map = *map] {
        for (uint32_t row = 0; row < map.box_y; row++)
            for (uint32_t column = 0; column < map.box_x; column++) {
                const bool inside = y + row < map.height && x + column < map.width;
                char element[2] = {0, 0};
                if (inside) memcpy(element, map.base + ((y + row) * map.width + x + column) * map.bytes, map.bytes);
                const uint32_t plain = to + row * row_bytes + column * map.bytes;
                const uint32_t swizzled = plain ^ (plain >> 7 & (row_bytes == 128 ? 7 : 3)) << 4;
                memcpy(block->async.data() + swizzled, element, map.bytes);
                memcpy(block->shared + swizzled, element, map.bytes);
            }
        Barrier &b = block->barriers[barrier];
        b.bytes -= row_bytes * map.box_y;
        b.settle();
    });
}

namespace {

/// An element of an operand in shared memory, as the tensor cores see it.
float element(uint64_t operand, uint32_t row, uint32_t k) {
    if (operand >> 62 != 1 || (operand >> 49 & 7)) fail("operand is not 128-byte swizzled");
    const uint32_t start = (operand & 0x3fff) << 4, eight_rows = (operand >> 32 & 0x3fff) << 4;
    const uint32_t plain = start + row / 8 * eight_rows + row % 8 * 128 + k * 2;
    uint16_t value;
    memcpy(&value, self->block->async.data() + (plain ^ (plain >> 7 & 7) << 4), 2);
    return ptx::from_bits((uint32_t)value << 16);
}

/// The calling thread's share of one warpgroup product; `left` is the left operand at a row and a k.
template <typename Left> void share(float *d, int n, Left left, uint64_t b) {
    const uint32_t t = self->index % 128, lane = t % 32;
    for (int i = 0; i < n / 2; i++) {
        const uint32_t row = t / 32 * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        float sum = 0;
        for (uint32_t k = 0; k < 16; k++) sum += left(row, k) * element(b, column, k);
        d[i] += sum;
    }
}

}  // namespace

void product(float *d, int n, uint64_t a, uint64_t b) {
    share(d, n, [=](uint32_t row, uint32_t k) { return element(a, row, k); }, b);
}

/// `a`: the registers of the four lanes that hold the calling thread's two rows.
void product(float *d, int n, const uint32_t *const *a, uint64_t b) {
    auto left = [=](uint32_t row, uint32_t k) { return ptx::widened(a[k % 8 / 2][row / 8 % 2 + k / 8 * 2], k % 2); };
    share(d, n, left, b);
}

}  // namespace machine
