// The kernels the emulated driver knows, by name.
#pragma once

#include "machine.h"

typedef std::function<void(void **arguments)> Kernel;

/// Null when there is none of that name.
const Kernel *find_kernel(const char *name);
