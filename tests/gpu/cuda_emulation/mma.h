// Stands in for CUDA's header of this name: products of matrices that the 32 lanes of a warp hold together.
//
// Element i of a matrix, counted row by row, is x[i / 32] of lane i % 32. As on a GPU, who holds what is
// nothing that a kernel may rely on.
#pragma once

#include <cstdint>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
namespace precision {
struct tf32;
}
enum layout_t { mem_row_major };

template <typename T>
struct Stored {
  using Type = T;
};
template <>
struct Stored<precision::tf32> {
  using Type = float;
};

template <typename Use, int kM, int kN, int kK, typename T, typename Layout = void>
struct fragment {
  static constexpr int kRows = std::is_same_v<Use, matrix_b> ? kK : kM;
  static constexpr int kColumns = std::is_same_v<Use, matrix_a> ? kK : kN;
  static constexpr int num_elements = kRows * kColumns / 32;
  using Type = typename Stored<T>::Type;
  Type x[num_elements];
};

inline float as_float(float x) { return x; }
inline float as_float(__half x) { return __half2float(x); }
inline float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// A float with the ten bits of mantissa that a tensor core reads.
inline float __float_to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (x == x) bits = (bits + 0x1000) & ~uint32_t{0x1fff};
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// What CUDA demands of a matrix in memory.
template <typename T>
void check_matrix(const T* data, unsigned stride) {
  if (reinterpret_cast<uintptr_t>(data) % 32 != 0)
    emulation::fail("a matrix that is not aligned to 32 bytes");
  if (stride * sizeof(T) % 16 != 0) emulation::fail("a matrix whose rows are no multiple of 16 bytes apart");
}

template <typename Fragment, typename T>
void load_matrix_sync(Fragment& to, const T* from, unsigned stride) {
  check_matrix(from, stride);
  for (int t = 0; t < Fragment::num_elements; ++t) {
    const unsigned i = 32 * t + emulation::lane();
    to.x[t] = from[i / Fragment::kColumns * stride + i % Fragment::kColumns];
  }
}

template <typename Fragment>
void store_matrix_sync(float* to, const Fragment& from, unsigned stride, layout_t) {
  check_matrix(to, stride);
  for (int t = 0; t < Fragment::num_elements; ++t) {
    const unsigned i = 32 * t + emulation::lane();
    to[i / Fragment::kColumns * stride + i % Fragment::kColumns] = from.x[t];
  }
}

template <typename Fragment, typename T>
void fill_fragment(Fragment& fragment, T value) {
  for (auto& x : fragment.x) x = value;
}

// d = a b + c
template <int kM, int kN, int kK, typename T>
void mma_sync(fragment<accumulator, kM, kN, kK, float>& d,
              const fragment<matrix_a, kM, kN, kK, T, row_major>& a,
              const fragment<matrix_b, kM, kN, kK, T, row_major>& b,
              const fragment<accumulator, kM, kN, kK, float>& c, int line = __builtin_LINE()) {
  struct Lane {
    fragment<accumulator, kM, kN, kK, float>* d;
    const fragment<matrix_a, kM, kN, kK, T, row_major>* a;
    const fragment<matrix_b, kM, kN, kK, T, row_major>* b;
    const fragment<accumulator, kM, kN, kK, float>* c;
  } mine{&d, &a, &b, &c};
  emulation::collective(
      ~0u, &mine,
      [](void* const* pointers) {
        const auto lane = [&](int i) { return static_cast<Lane*>(pointers[i % 32]); };
        float left[kM * kK], right[kK * kN];
        for (int i = 0; i < kM * kK; ++i) left[i] = as_float(lane(i)->a->x[i / 32]);
        for (int i = 0; i < kK * kN; ++i) right[i] = as_float(lane(i)->b->x[i / 32]);
        for (int i = 0; i < kM * kN; ++i) {
          float sum = lane(i)->c->x[i / 32];
          for (int k = 0; k < kK; ++k) sum += left[i / kN * kK + k] * right[k * kN + i % kN];
          lane(i)->d->x[i / 32] = sum;
        }
      },
      line);
}

}  // namespace nvcuda::wmma
