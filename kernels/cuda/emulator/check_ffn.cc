// The grouped SwiGLU kernels against f64, and the same row in two different batches.
#include "../ffn_hopper.cuh"
#include "../ffn_portable.cuh"
#include "check.h"

namespace check {
namespace {

/// Weights of all experts, rows, and a list of pairs in groups.
struct Case {
    uint32_t hidden, inter, slots, rows;
    Array<bf16> x, gate, up, down;
    std::vector<uint32_t> slot, first, row;
    std::vector<float> weight;

    Case(uint32_t h, uint32_t i, uint32_t s, uint32_t r, uint32_t seed)
        : hidden(h), inter(i), slots(s), rows(r), x(r * h), gate(s * i * h), up(s * i * h), down(s * h * i) {
        std::mt19937 random(seed);
        randomise(x, random, 1), randomise(gate, random, 0.2f), randomise(up, random, 0.2f);
        randomise(down, random, 0.2f);
        first.push_back(0);
    }
    void group(uint32_t expert, uint32_t pairs, std::mt19937 &random) {
        slot.push_back(expert);
        for (uint32_t i = 0; i < pairs; i++) {
            row.push_back(random() % rows);
            weight.push_back(uniform(random, 1));
        }
        first.push_back(row.size());
    }
};

template <typename T> void copy(Array<T> &to, const std::vector<T> &from) {
    for (size_t i = 0; i < from.size(); i++) to[i] = from[i];
}

struct Run {
    Array<uint32_t> slot, first, row, ready;
    Array<float> weight;
    Array<bf16> act, out;

    explicit Run(const Case &c)
        : slot(c.slot.size()), first(c.first.size()), row(c.row.size()), ready(c.slot.size() + 1, 0),
          weight(c.weight.size()), act(c.row.size() * c.inter, POISON), out(c.row.size() * c.hidden, POISON) {
        copy(slot, c.slot), copy(first, c.first), copy(row, c.row), copy(weight, c.weight);
    }
    FfnParams params(const Case &c) {
        return {c.x.data,   c.gate.data, c.up.data, c.down.data, slot.data,  first.data,
                row.data,   weight.data, act.data,  out.data,    ready.data, (uint32_t)c.slot.size(),
                c.hidden,   c.inter};
    }
    bool counters_are_zero() const {
        for (size_t i = 0; i < ready.size; i++)
            if (ready[i]) return false;
        return true;
    }
};

TensorMap map(const Array<bf16> &weights, uint32_t inner) {
    return {weights.data, inner, weights.size / inner, 64, 128};
}

void run(bool hopper_kernel, const Case &c, Run &r, uint32_t blocks, uint32_t seed) {
    const FfnParams p = r.params(c);
    if (hopper_kernel) {
        const TensorMap gate = map(c.gate, c.hidden), up = map(c.up, c.hidden), down = map(c.down, c.inter);
        machine::launch(blocks, 1, hopper::THREADS, hopper::SHARED_BYTES, seed,
                        [&] { ffn_hopper(p, gate, up, down); });
    } else {
        machine::launch(blocks, 1, portable::THREADS, portable::SHARED_BYTES, seed, [&] { ffn_portable(p); });
    }
}

std::vector<double> reference(const Case &c) {
    std::vector<double> out(c.row.size() * c.hidden), act(c.inter);
    for (size_t g = 0; g < c.slot.size(); g++)
        for (uint32_t pair = c.first[g]; pair < c.first[g + 1]; pair++) {
            const bf16 *x = c.x.data + c.row[pair] * c.hidden;
            for (uint32_t i = 0; i < c.inter; i++) {
                double gate = 0, up = 0;
                const size_t at = ((size_t)c.slot[g] * c.inter + i) * c.hidden;
                for (uint32_t k = 0; k < c.hidden; k++) {
                    gate += real(x[k]) * real(c.gate[at + k]);
                    up += real(x[k]) * real(c.up[at + k]);
                }
                act[i] = gate / (1 + std::exp(-gate)) * up;
            }
            for (uint32_t m = 0; m < c.hidden; m++) {
                double sum = 0;
                for (uint32_t k = 0; k < c.inter; k++)
                    sum += act[k] * real(c.down[((size_t)c.slot[g] * c.hidden + m) * c.inter + k]);
                out[(size_t)pair * c.hidden + m] = sum * c.weight[pair];
            }
        }
    return out;
}

/// Groups of every width the kernels know, an empty one, one that takes several tiles; odd feature counts.
void against_reference(Report &report, bool hopper_kernel, uint32_t seed) {
    std::mt19937 random(seed);
    Case c(264, 152, 5, 7, seed);
    for (uint32_t pairs : {3u, 0u, 130u, 17u, 70u}) c.group(random() % 5, pairs, random);
    Run r(c);
    run(hopper_kernel, c, r, 3, seed);
    const std::string name = hopper_kernel ? "ffn_hopper" : "ffn_portable";
    report.close(error(r.out, reference(c)), 5e-3, name + " against f64, seed " + std::to_string(seed));
    report.expect(r.counters_are_zero(), name + " leaves its counters at zero");
}

/// One row alone, and the same row among others, at another place, on another number of blocks.
void same_bits(Report &report, bool hopper_kernel, uint32_t neighbours) {
    std::mt19937 random(neighbours);
    Case alone(136, 72, 2, 4, 9), among(136, 72, 2, 4, 9);
    alone.slot = {1}, alone.row = {2}, alone.weight = {0.7f}, alone.first = {0, 1};
    among.group(0, 5, random);
    among.group(1, neighbours, random);
    const size_t place = 5 + neighbours / 2;
    among.row[place] = 2, among.weight[place] = 0.7f;
    Run a(alone), b(among);
    run(hopper_kernel, alone, a, 1, 1);
    run(hopper_kernel, among, b, 2, 2);
    const bool same = !memcmp(a.out.data, b.out.data + place * 136, 136 * sizeof(bf16));
    report.expect(same, std::string(hopper_kernel ? "ffn_hopper" : "ffn_portable") + ": same bits among " +
                            std::to_string(neighbours) + " rows as alone");
}

}  // namespace

void ffn(Report &report) {
    for (bool hopper_kernel : {true, false}) {
        for (uint32_t seed : {1u, 2u, 3u}) against_reference(report, hopper_kernel, seed);
        for (uint32_t neighbours : {2u, 12u, 40u, 90u, 128u, 200u}) same_bits(report, hopper_kernel, neighbours);
    }
}

}  // namespace check
