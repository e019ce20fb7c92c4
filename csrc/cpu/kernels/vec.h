// One vector of floats, as wide as the instruction set that this file is compiled for.
//
// Everything is in an anonymous namespace: a function compiled for one instruction set must never be
// linked into code for another.
#pragma once

#include <cstdint>

#ifndef VPDARTS_LANES
#error "VPDARTS_LANES: 4 (baseline), 8 (avx2) or 16 (avx512), set by CMakeLists.txt"
#endif

namespace {

constexpr int64_t kLanes = VPDARTS_LANES;

// The compiler splits it where the machine's registers are narrower.
typedef float Vec __attribute__((vector_size(4 * VPDARTS_LANES)));

inline __attribute__((always_inline)) Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

inline __attribute__((always_inline)) void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof(v)); }

// Stores what will not be read soon, past the caches if a vector is one of their lines; p is aligned to it.
inline __attribute__((always_inline)) void stream(float* p, Vec v) {
#if VPDARTS_LANES == 16 && defined(__AVX512F__)
  __builtin_ia32_movntps512(p, v);
#else
  store(p, v);
#endif
}

// Makes what was streamed visible to other threads.
inline void finish_stream() {
#if VPDARTS_LANES == 16 && defined(__AVX512F__)
  __builtin_ia32_sfence();
#endif
}

// max(v, 0); NaN stays NaN.
inline __attribute__((always_inline)) Vec relu(Vec v) {
  const Vec zero{};
  return v < zero ? zero : v;
}

// [x > 0] g, the gradient of relu(x); where x is NaN g passes, as in PyTorch.
inline __attribute__((always_inline)) Vec relu_gradient(Vec x, Vec g) {
  const Vec zero{};
  return x <= zero ? zero : g;
}

}  // namespace
