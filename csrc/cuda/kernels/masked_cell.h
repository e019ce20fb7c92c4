// The torch-free interface of the masked_cell kernels: a whole cell for V variants, batch norms with fixed
// statistics. With them an edge is one 3x3 convolution on relu(x) beside a skip and a pool,
//
//   node_i = sum_j [ W_vj * relu(x_j) + skip_vj x_j + pool_vj pool(x_j) ] + b_vi,
//   W_vj = a_1x1 W1 / s1 (centre tap) + a_3x3 W3 / s3,   b_vi = sum_j -a_1x1 m1 / s1 - a_3x3 m3 / s3.
//
// A block of threads takes one variant and a group of images through the whole cell; the values of the nodes
// stay in its shared memory. Tensors are dense [V, N, H, W, C].
#pragma once

#include <cstdint>

#include "number.h"

namespace vpdarts::cuda {

constexpr int kMostNodes = 6;

struct CellShape {
  Number number;  // of the activations
  int variants, images, nodes, channels, height, width;

  constexpr int edges() const { return nodes * (nodes - 1) / 2; }
  constexpr int padded() const { return (channels + 15) / 16 * 16; }
};

struct MaskedCell {
  CellShape shape;
  bool tf32;                             // float32 activations are multiplied with ten bits of mantissa
  bool shared;                           // x is [1, N, H, W, C] for all variants
  const void* x;                         // [V, N, H, W, C]
  const float *weight_1x1, *weight_3x3;  // [E, C, C, 1, 1], [E, C, C, 3, 3]
  const float *mean, *variance;          // [E, 2, C], or [V, E, 2, C]
  bool own;                              // which of them: each variant has its own
  const float* alpha;                    // [V, E, 5]
  float eps;
  void* workspace;  // cell_workspace(shape) bytes
  void* out;
};

// Why the kernel cannot take this shape on the current device, or null. std::runtime_error from CUDA.
const char* masked_cell_refuses(const CellShape& shape);
int64_t cell_workspace(const CellShape& shape);

// Starts the kernels on a CUDA stream of the current device; std::runtime_error if that fails.
void launch_masked_cell(const MaskedCell& args, void* stream);

}  // namespace vpdarts::cuda
