// From a kernel's name and the addresses of its arguments to a run of its source.
#include "dispatch.h"

#include "../attention.cuh"
#include "../attention_latent.cuh"
#include "../exact.cuh"
#include "../ffn_hopper.cuh"
#include "../ffn_portable.cuh"
#include "../heads.cuh"
#include "../latent.cuh"
#include "../norm.cuh"
#include "../probe.cuh"
#include "../router.cuh"

namespace {

/// Calls `kernel` with each argument read as what its parameter list says.
template <typename... T, size_t... I>
void call(void (*kernel)(T...), void **arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_cv_t<T> *)arguments[I]...);
}
template <typename... T> Kernel wrap(void (*kernel)(T...)) {
    return [=](void **arguments) { call(kernel, arguments, std::index_sequence_for<T...>()); };
}

const std::map<std::string, Kernel> KERNELS = {
    {"ffn_hopper", wrap(ffn_hopper)},
    {"ffn_hopper_fp8", wrap(ffn_hopper_fp8)},
    {"ffn_portable", wrap(ffn_portable)},
    {"ffn_portable_fp8", wrap(ffn_portable_fp8)},
    {"add_norm", wrap(add_norm)},
    {"attend_32", wrap(attend_32)},
    {"attend_64", wrap(attend_64)},
    {"attend_128", wrap(attend_128)},
    {"attend_chunk_32", wrap(attend_chunk_32)},
    {"attend_chunk_64", wrap(attend_chunk_64)},
    {"attend_chunk_128", wrap(attend_chunk_128)},
    {"attend_latent_128", wrap(attend_latent_128)},
    {"attend_latent_512", wrap(attend_latent_512)},
    {"attend_merge", wrap(attend_merge)},
    {"exact_product", wrap(exact_product)},
    {"fill", wrap(fill)},
    {"head_product", wrap(head_product)},
    {"route", wrap(route)},
    {"stream", wrap(stream)},
    {"turn_query", wrap(turn_query)},
    {"write_kv", wrap(write_kv)},
    {"write_latent", wrap(write_latent)},
};

}  // namespace

const Kernel *find_kernel(const char *name) {
    const auto found = KERNELS.find(name);
    return found == KERNELS.end() ? nullptr : &found->second;
}
