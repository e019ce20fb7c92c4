// The torch-free interface of the relu_conv kernels: r = relu(x), then the 3x3 convolutions of all edges
// that leave a node, raw_e = W_e * r, by Winograd F(4x4, 3x3). Of the 1x1 convolutions the moments of r
// say everything that batch norm needs, and in a mixed cell mixed_cell computes them pixel by pixel; the
// kernels with 1x1 in their names are for cells that need their raw outputs.
#pragma once

#include "block.h"
#include "isas.h"

namespace vpdarts::cpu {

struct ReluConvForward {
  Block block;
  const float* x;
  int64_t edges;
  const float* const* weight;  // [edges], transformed
  float* const* raw;           // [edges], like x, aligned to 64 bytes
  // Of this block, over its pixels: mean of r [padded] and sum of (r - mean)(r - mean)^T [padded][padded].
  // Null if nobody wants them; statistics likewise.
  float* moments;
  // Of this block, per edge: mean of raw [padded] and sum of (raw - mean)^2 [padded].
  float* statistics;
};

// The gradient of raw_e, never stored: node_scale * node + raw_scale * raw + shift, each [padded].
struct RawGradient {
  const float *node, *raw;  // gradient of the node that the edge enters, and the edge's raw output
  const float *node_scale, *raw_scale, *shift;
};

struct ReluConvBackward {
  Block block;
  const float* x;
  int64_t edges;
  const RawGradient* gradient;  // [edges]
  const float* const* weight;   // [edges], transformed, transposed
  // Sum over edges of the gradient of r, on maps with a border: see border_map. Null if nobody wants it.
  float* rectified;
  // [edges][36][padded][padded], added to. Null if nobody wants it.
  float* weight_sums;
};

// Maps of 4*ceil(H/4) + 2 rows of 4*ceil(W/4) + 2 pixels, the image at (1, 1).
struct BorderMap {
  int64_t row, image, first, floats;
};

inline BorderMap border_map(const Block& block) {
  const int64_t row = (4 * ((block.width + 3) / 4) + 2) * block.padded;
  const int64_t image = (4 * ((block.height + 3) / 4) + 2) * row;
  return {row, image, row + block.padded, block.images * image};
}

// raw_e = conv_e r, pixel by pixel.
struct ReluConv1x1Forward {
  Block block;
  const float* x;
  int64_t edges;
  const float* const* conv;  // [edges][padded / block][padded][block], rows are input channels
  float* const* raw;         // [edges], like x
};

// dx = [x > 0] ( rectified + sum_e conv_e draw_e ),   dW_e += sum over pixels of draw_e r^T.
struct ReluConv1x1Backward {
  Block block;
  const float* x;
  int64_t edges;
  const float* const* gradient;  // [edges], of raw
  const float* const* conv;      // [edges][padded / block][padded][block], rows are output channels
  const float* rectified;        // what the 3x3 convolutions say of r; a border_map
  float* x_gradient;             // null if nobody wants it
  float* weight_sums;            // [edges][padded out][padded in], added to. Null if nobody wants it.
};

struct ReluConvKernels {
  int64_t lanes;
  // Floats of the transformed weight of one edge.
  int64_t (*weight_floats)(int64_t padded);
  // conv [C, C, 3, 3], c_out first, to what `forward` takes and, transposed, to what `backward` takes.
  void (*transform_weight)(int64_t channels, int64_t padded, const float* conv, bool transposed,
                           float* weight);
  // Floats of scratch memory, 64-byte aligned.
  int64_t (*forward_scratch)(const Block& block, int64_t edges);
  void (*forward)(const ReluConvForward& args, float* scratch);
  int64_t (*backward_scratch)(const Block& block, int64_t edges);
  void (*backward)(const ReluConvBackward& args, float* scratch);
  // From an edge's weight_sums to the gradient [C, C, 3, 3] of its weight.
  void (*weight_gradient)(int64_t channels, int64_t padded, const float* weight_sums, float* gradient);
  // matrix [padded out][padded in] of a 1x1 convolution to the layout of conv, here and in a mixed cell.
  void (*pack_1x1)(int64_t padded, const float* matrix, float* conv);
  // Floats of scratch memory of the 1x1 convolutions, forward and backward.
  int64_t (*scratch_1x1)(const Block& block, int64_t edges);
  void (*forward_1x1)(const ReluConv1x1Forward& args, float* scratch);
  void (*backward_1x1)(const ReluConv1x1Backward& args, float* scratch);
};

VPDARTS_IN_EVERY_ISA(const ReluConvKernels& relu_conv_kernels();)

}  // namespace vpdarts::cpu
