// libcuda.so.1 over the emulated GPU: the calls that amoe makes, with the driver's own names and codes.
//
// The environment plays the cases a program must survive:
//   AMOE_EMULATED_FAULT      no-device, old-driver, or out-of-memory
//   AMOE_EMULATED_SEED       the scheduler's seed
//   AMOE_EMULATED_CAPABILITY 80 for a device that is no Hopper, 86 for one with less shared memory
//   AMOE_EMULATED_LAUNCHES   launches after which the device fails for good
#include <sys/mman.h>

#include <chrono>
#include <mutex>
#include <string>

#include "dispatch.h"

#define CALL extern "C" __attribute__((visibility("default"))) int

namespace {

enum Code { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, NOT_FOUND = 500, LAUNCH_FAILED = 719 };

typedef unsigned long long Pointer;

bool fault(const char *name) {
    const char *set = getenv("AMOE_EMULATED_FAULT");
    return set && !strcmp(set, name);
}
unsigned number(const char *name, unsigned otherwise) {
    const char *set = getenv(name);
    return set ? (unsigned)strtoul(set, nullptr, 10) : otherwise;
}

const size_t PAGE = 4096;
std::map<Pointer, std::pair<void *, size_t>> allocations;
std::mutex allocating;  // NCCL's thread has memory of its own
void *current;

/// Ends at a page that may not be touched, as near as sixteen-byte alignment allows.
Pointer allocate(size_t bytes) {
    const size_t used = (bytes + 15) / 16 * 16, pages = (used + PAGE - 1) / PAGE * PAGE;
    char *start = (char *)mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return 0;
    mprotect(start + pages, PAGE, PROT_NONE);
    memset(start, 0xff, pages);
    const Pointer at = (Pointer)(start + pages - used);
    std::lock_guard<std::mutex> lock(allocating);
    allocations[at] = {start, pages + PAGE};
    return at;
}

}  // namespace

// ---- Start, device, context ---------------------------------------------------------------------------

CALL cuInit(unsigned) { return fault("no-device") ? NO_DEVICE : SUCCESS; }
CALL cuDriverGetVersion(int *version) {
    *version = fault("old-driver") ? 12040 : 13000;
    return SUCCESS;
}
CALL cuDeviceGetCount(int *count) {
    *count = 1;
    return SUCCESS;
}
CALL cuDeviceGet(int *device, int ordinal) {
    *device = 0;
    return ordinal == 0 ? SUCCESS : 101;
}
CALL cuDeviceGetName(char *name, int length, int) {
    snprintf(name, length, "emulated GPU");
    return SUCCESS;
}
CALL cuDeviceGetAttribute(int *value, int attribute, int) {
    const unsigned capability = number("AMOE_EMULATED_CAPABILITY", 90);
    switch (attribute) {
        case 16: *value = 3; break;  // multiprocessors: few, so that every block has several tiles
        case 75: *value = (int)capability / 10; break;
        case 76: *value = (int)capability % 10; break;
        default: *value = 0;
    }
    return SUCCESS;
}
CALL cuDeviceTotalMem_v2(size_t *bytes, int) {
    *bytes = 1ull << 30;
    return SUCCESS;
}
CALL cuMemGetInfo_v2(size_t *free, size_t *total) {
    *free = *total = 1ull << 30;
    return SUCCESS;
}
CALL cuDevicePrimaryCtxRetain(void **context, int) {
    *context = &current;
    return SUCCESS;
}
CALL cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
CALL cuCtxGetCurrent(void **context) {
    *context = current;
    return SUCCESS;
}
CALL cuCtxSetCurrent(void *context) {
    current = context;
    return SUCCESS;
}
CALL cuCtxSynchronize() { return SUCCESS; }
CALL cuGetErrorName(int code, const char **name) {
    *name = code == NO_DEVICE       ? "CUDA_ERROR_NO_DEVICE"
            : code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
            : code == LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED"
                                    : "CUDA_ERROR";
    return SUCCESS;
}
CALL cuGetErrorString(int code, const char **text) {
    *text = code == NO_DEVICE       ? "no CUDA-capable device is detected"
            : code == OUT_OF_MEMORY ? "out of memory"
            : code == LAUNCH_FAILED ? "unspecified launch failure"
                                    : "error";
    return SUCCESS;
}

// ---- Memory, streams, events ----------------------------------------------------------------------------

CALL cuMemAlloc_v2(Pointer *at, size_t bytes) {
    if (fault("out-of-memory")) return OUT_OF_MEMORY;
    *at = allocate(bytes);
    return *at ? SUCCESS : OUT_OF_MEMORY;
}
CALL cuMemFree_v2(Pointer at) {
    std::lock_guard<std::mutex> lock(allocating);
    const auto found = allocations.find(at);
    if (found == allocations.end()) return INVALID_VALUE;
    munmap(found->second.first, found->second.second);
    allocations.erase(found);
    return SUCCESS;
}
CALL cuMemHostAlloc(void **at, size_t bytes, unsigned) {
    *at = malloc(bytes);
    return *at ? SUCCESS : OUT_OF_MEMORY;
}
CALL cuMemFreeHost(void *at) {
    free(at);
    return SUCCESS;
}
CALL cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t bytes, void *) {
    memcpy((void *)to, from, bytes);
    return SUCCESS;
}
CALL cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t bytes, void *) {
    memcpy(to, (void *)from, bytes);
    return SUCCESS;
}
CALL cuMemsetD8Async(Pointer to, unsigned char value, size_t bytes, void *) {
    memset((void *)to, value, bytes);
    return SUCCESS;
}
CALL cuStreamCreate(void **stream, unsigned) {
    *stream = &current;
    return SUCCESS;
}
CALL cuStreamDestroy_v2(void *) { return SUCCESS; }
CALL cuStreamSynchronize(void *) { return SUCCESS; }
CALL cuStreamQuery(void *) { return SUCCESS; }
CALL cuStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }
CALL cuEventCreate(void **event, unsigned) {
    *event = new std::chrono::steady_clock::time_point;
    return SUCCESS;
}
CALL cuEventDestroy_v2(void *event) {
    delete (std::chrono::steady_clock::time_point *)event;
    return SUCCESS;
}
CALL cuEventRecord(void *event, void *) {
    *(std::chrono::steady_clock::time_point *)event = std::chrono::steady_clock::now();
    return SUCCESS;
}
CALL cuEventSynchronize(void *) { return SUCCESS; }
CALL cuEventElapsedTime_v2(float *ms, void *start, void *end) {
    const auto span = *(std::chrono::steady_clock::time_point *)end - *(std::chrono::steady_clock::time_point *)start;
    *ms = std::chrono::duration<float, std::milli>(span).count();
    return SUCCESS;
}
CALL cuEventElapsedTime(float *ms, void *start, void *end) { return cuEventElapsedTime_v2(ms, start, end); }

// ---- Modules, launches, tensor maps ---------------------------------------------------------------------

CALL cuModuleLoadData(void **module, const void *) {
    *module = &current;  // whatever the image is: the kernels are compiled in
    return SUCCESS;
}
CALL cuModuleUnload(void *) { return SUCCESS; }
CALL cuModuleGetFunction(void **function, void *, const char *name) {
    *function = (void *)find_kernel(name);
    return *function ? SUCCESS : NOT_FOUND;
}
/// Shared memory is the one that is asked for, and a block of an A100 or an H100 may have as much as this.
CALL cuFuncSetAttribute(void *, int attribute, int value) {
    const unsigned capability = number("AMOE_EMULATED_CAPABILITY", 90);
    const int most = capability >= 90 ? 227 : capability == 80 ? 163 : 99;
    return attribute == 8 && value > most * 1024 ? INVALID_VALUE : SUCCESS;
}
CALL cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *, int, size_t) {
    *blocks = 1;
    return SUCCESS;
}
CALL cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, void *, int, size_t, unsigned) {
    *blocks = 1;
    return SUCCESS;
}
CALL cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                    unsigned threads_z, unsigned shared, void *, void **arguments, void **) {
    if (z != 1 || threads_y != 1 || threads_z != 1) return INVALID_VALUE;
    static unsigned launches = 0;
    if (launches >= number("AMOE_EMULATED_LAUNCHES", ~0u)) return LAUNCH_FAILED;
    const unsigned seed = number("AMOE_EMULATED_SEED", 1) * 1000 + launches++;
    machine::launch(x, y, threads, shared, seed, [=] { (*(const Kernel *)function)(arguments); });
    return SUCCESS;
}
CALL cuTensorMapEncodeTiled(TensorMap *map, int type, unsigned rank, void *base, const uint64_t *size,
                            const uint64_t *stride, const uint32_t *box, const uint32_t *step, int interleave,
                            int swizzle, int promotion, int fill) {
    // bf16 swizzled over 128 bytes, or bytes over 64.
    const uint32_t bytes = type == 9 && swizzle == 3 ? 2 : type == 0 && swizzle == 2 ? 1 : 0;
    const bool known = bytes && rank == 2 && interleave == 0 && fill == 0 && promotion <= 3;
    const bool dense = stride[0] == size[0] * bytes && step[0] == 1 && step[1] == 1;
    if (!known || !dense || stride[0] % 16 || box[0] != 64 || box[1] > 256) return INVALID_VALUE;
    *map = {(const char *)base, size[0], size[1], box[0], box[1], bytes};
    return SUCCESS;
}
