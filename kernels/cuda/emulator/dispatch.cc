// From a kernel's name and the addresses of its arguments to a run of its source.
#include "dispatch.h"

#include "../ffn_hopper.cuh"
#include "../ffn_portable.cuh"

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
    {"ffn_portable", wrap(ffn_portable)},
};

}  // namespace

const Kernel *find_kernel(const char *name) {
    const auto found = KERNELS.find(name);
    return found == KERNELS.end() ? nullptr : &found->second;
}
