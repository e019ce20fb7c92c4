// Stands in for PyTorch's header of this name where a test is built without PyTorch.
#pragma once

#include <cstdio>
#include <cstdlib>

#define STD_TORCH_CHECK(condition, ...)                       \
  do {                                                        \
    if (!(condition)) {                                       \
      std::fprintf(stderr, "check failed: %s\n", #condition); \
      std::abort();                                           \
    }                                                         \
  } while (false)
