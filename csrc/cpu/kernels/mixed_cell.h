// The torch-free interface of the mixed_cell kernels: a node as the weighted sum over its incoming edges,
//
//   node = sum_e [ skip_e keep_e x_e + pool_e pool(x_e) + conv_e relu(x_e) + scale_e raw_e ] + shift,
//
// batch norm and alpha folded into conv_e (the 1x1 convolution), scale_e, raw_e's factor (the 3x3
// convolution's), and shift. keep_e is the dropout behind the skip connection: see keep_bits in dropout.h.
#pragma once

#include "block.h"
#include "dropout.h"
#include "isas.h"

namespace vpdarts::cpu {

constexpr int64_t kMostIncoming = 5;  // edges into, or out of, a node of six

// One edge as the forward pass sees it: x is the source node. raw and conv are null where the edge has no
// such convolution, here and below.
struct IncomingEdge {
  const float *x, *raw;
  const float* conv;   // [padded / block][padded][block], rows are input channels
  const float* scale;  // [padded]
  float skip, pool;
  Dropout keep;
};

struct MixedCellForward {
  Block block;
  int64_t channels;     // before padding
  int64_t first_pixel;  // of the block, in the whole batch
  int64_t edges;
  const IncomingEdge* edge;  // [edges]
  const float* shift;        // [padded]
  float* node;
};

// What the gradients of alpha and of the batch norms need of one incoming edge.
struct ReducedEdge {
  const float *x, *raw;
  const float *mean, *raw_mean;  // of relu(x) and of raw, [padded]
  Dropout keep;
  float* raw_sum;  // sum of g (raw - raw_mean), [padded]; null without a 3x3 convolution
  float* cross;    // sum of g (relu(x) - mean)^T, [padded g][padded x]; null without a 1x1 convolution
  float* skip;     // sum of g keep x, [padded]; null if the gradient of alpha is not wanted
  float* pool;     // sum of g pool(x), [padded]; likewise
};

// Sums over a block's pixels, g the gradient of the node.
struct MixedCellReduce {
  Block block;
  int64_t channels, first_pixel, edges;
  const ReducedEdge* edge;  // [edges]
  const float* gradient;
  float* sum;  // of g, [padded]
};

// One edge as the backward pass of its source node sees it: the gradient is of the node it enters.
struct OutgoingEdge {
  const float* gradient;
  const float* conv;  // [padded / block][padded][block], rows are channels of the gradient; or null
  float skip, pool;
  Dropout keep;
};

// dx = sum_e [ skip_e keep_e g_e + pool^T(pool_e g_e) ] + [x > 0] ( rectified + sum_e conv_e g_e + own
// relu(x)
// + shift ).
struct MixedCellBackward {
  Block block;
  int64_t channels, first_pixel, edges;
  const OutgoingEdge* edge;  // [edges]
  const float* x;
  const float* own;        // [padded / block][padded][block]; null without 1x1 convolutions
  const float* shift;      // [padded]
  const float* rectified;  // what relu_conv's backward pass says of relu(x), a border_map; null if nothing
  float* x_gradient;
};

struct MixedCellKernels {
  // Floats of scratch memory, 64-byte aligned.
  int64_t (*scratch)(const Block& block, int64_t edges);
  void (*forward)(const MixedCellForward& args, float* scratch);
  void (*reduce)(const MixedCellReduce& args, float* scratch);
  void (*backward)(const MixedCellBackward& args, float* scratch);
};

VPDARTS_IN_EVERY_ISA(const MixedCellKernels& mixed_cell_kernels();)

}  // namespace vpdarts::cpu
