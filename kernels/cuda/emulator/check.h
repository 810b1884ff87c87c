// What the checks of the emulated kernels share: random tensors that end at a forbidden page, and one error measure.
#pragma once

#include <sys/mman.h>

#include <string>

#include "machine.h"

namespace check {

typedef uint16_t bf16;

inline double real(bf16 x) { return ptx::from_bits((uint32_t)x << 16); }
inline double real(float x) { return x; }

/// An array whose end is the end of what may be touched: one element too far is a crash, not a guess.
template <typename T> struct Array {
    size_t size;
    T *data;

    explicit Array(size_t n) : size(n) {
        const size_t page = 4096, bytes = (n * sizeof(T) + page - 1) / page * page;
        char *start = (char *)mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (start == MAP_FAILED) machine::fail("no memory for an array");
        mprotect(start + bytes, page, PROT_NONE);
        // Sixteen-byte accesses want aligned arrays: the size is a multiple of it in every check that needs one.
        data = (T *)(start + bytes - n * sizeof(T));
    }
    Array(size_t n, T value) : Array(n) { fill(value); }
    Array(const Array &) = delete;
    T &operator[](size_t i) { return data[i]; }
    const T &operator[](size_t i) const { return data[i]; }
    void fill(T value) {
        for (size_t i = 0; i < size; i++) data[i] = value;
    }
};

const bf16 POISON = 0x7fff;  // NaN: an element nobody wrote never passes

inline float uniform(std::mt19937 &random, float scale) {
    return std::uniform_real_distribution<float>(-scale, scale)(random);
}
inline void randomise(Array<bf16> &a, std::mt19937 &random, float scale) {
    for (size_t i = 0; i < a.size; i++) a[i] = (bf16)ptx::round_bf16(uniform(random, scale));
}
inline void randomise(Array<float> &a, std::mt19937 &random, float scale) {
    for (size_t i = 0; i < a.size; i++) a[i] = uniform(random, scale);
}

/// The norm of the difference over the norm of the reference; NaN where anything is.
template <typename T> double error(const Array<T> &got, const std::vector<double> &want) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < want.size(); i++) {
        const double d = real(got[i]) - want[i];
        difference += d * d, norm += want[i] * want[i];
    }
    return std::sqrt(difference / norm);
}

/// Counts and prints; the program fails when anything failed.
struct Report {
    int failures = 0;

    void expect(bool holds, const std::string &what) {
        printf("%s  %s\n", holds ? "ok  " : "FAIL", what.c_str());
        failures += !holds;
    }
    void close(double error, double limit, const std::string &what) {
        char text[64];
        snprintf(text, sizeof text, ": error %.2e (limit %.0e)", error, limit);
        expect(error <= limit, what + text);
    }
};

void ffn(Report &report);

}  // namespace check
