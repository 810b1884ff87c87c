// bf16 as bits, with no toolkit header behind it, so that a kernel's arithmetic reads the same everywhere.
#pragma once

typedef uint16_t bf16;

/// Sixteen bytes: eight bf16 values, the widest access of a thread.
struct alignas(16) Eight {
    uint32_t pair[4];
};

DEV float widen(bf16 x) { return ptx::from_bits((uint32_t)x << 16); }
DEV float low(uint32_t pair) { return ptx::from_bits(pair << 16); }
DEV float high(uint32_t pair) { return ptx::from_bits(pair & 0xffff0000u); }
DEV bf16 narrow(float x) { return (bf16)ptx::pack_bf16(x, 0.0f); }

/// e^x; exact to about two units in the last place of a float.
DEV float exponential(float x) { return ptx::exp2(x * 1.4426950408889634f); }
DEV float silu(float x) { return ptx::divide(x, 1.0f + exponential(-x)); }
