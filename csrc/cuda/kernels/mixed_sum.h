// The torch-free interface of the mixed_sum kernels: a node from its k incoming edges, V variants at once,
//
//   node = sum_e [ skip_e keep_e x_e + pool_e pool(x_e) + sum_o scale_eo raw_eo ] + shift,
//
// o the 1x1 and the 3x3 convolution, batch norm with the batch's own statistics and alpha folded into
// scale_eo = alpha_eo / sqrt(variance_eo + eps) and shift = -sum scale_eo mean_eo. keep_e, dropout's factors,
// may be null: 1. Tensors are dense [V, N, H, W, C]; all sums are float and in a fixed order.
#pragma once

#include <cstdint>

#include "number.h"

namespace vpdarts::cuda {

constexpr int kMostIncoming = 16;  // edges into a node

struct NodeShape {
  Number number;  // of the activations
  int variants, edges;
  int images, channels, height, width;

  constexpr int64_t pixels() const { return static_cast<int64_t>(images) * height * width; }
  constexpr int64_t values() const { return pixels() * channels; }
};

// What enters the node, edge by edge, each [V, N, H, W, C].
struct NodeTerms {
  const void* x[kMostIncoming];
  const void* keep[kMostIncoming];
  const void* raw[kMostIncoming][2];
  const float* alpha;  // [V, k, 5]
  float eps;
};

struct MixedSumForward {
  NodeShape shape;
  NodeTerms terms;
  float *mean, *variance;  // [V, k, 2, C]
  float* workspace;        // forward_workspace(shape) floats
  void* node;
};

// Null is what nobody wants.
struct MixedSumBackward {
  NodeShape shape;
  NodeTerms terms;
  const float *mean, *variance;  // [V, k, 2, C]
  const void* gradient;          // of the node
  float* workspace;              // backward_workspace(shape) floats
  void* x_gradient[kMostIncoming];
  void* keep_gradient[kMostIncoming];
  void* raw_gradient[kMostIncoming][2];
  float* alpha_gradient;  // [V, k, 5]
};

int64_t forward_workspace(const NodeShape& shape);
int64_t backward_workspace(const NodeShape& shape);

// Start the kernels on a CUDA stream of the current device; std::runtime_error if that fails.
void launch_mixed_sum(const MixedSumForward& args, void* stream);
void launch_mixed_sum_backward(const MixedSumBackward& args, void* stream);

}  // namespace vpdarts::cuda
