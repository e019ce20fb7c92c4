// The instruction sets that kernels are compiled for, each in a namespace of its own.
#pragma once

// The same in every one of them: how the function is declared that returns a table of kernels.
#define VPDARTS_IN_EVERY_ISA(...) \
  namespace baseline {            \
  __VA_ARGS__                     \
  }                               \
  namespace avx2 {                \
  __VA_ARGS__                     \
  }                               \
  namespace avx512 {              \
  __VA_ARGS__                     \
  }
