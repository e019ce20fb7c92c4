// The torch-free interface of the relu_pointwise kernels: one or two 1x1 convolutions of relu(x), side by
// side, each of every stride-th pixel. The second one reads the pixel one further in both directions.
#pragma once

#include "block.h"
#include "isas.h"

namespace vpdarts::cpu {

// One image: of the input height x width pixels, of the output ceil(height / stride) x ceil(width / stride).
struct PointwiseShape {
  int64_t height, width, channels, padded;
  int64_t stride, out_padded;
  int64_t count;     // of convolutions
  int64_t first[3];  // convolution i makes the channels from first[i] to first[i + 1] - 1 of the output
  int64_t out_height() const { return (height + stride - 1) / stride; }
  int64_t out_width() const { return (width + stride - 1) / stride; }
  Block in() const { return {1, height, width, padded}; }
  Block out() const { return {1, out_height(), out_width(), out_padded}; }
};

// raw(p) = W_i relu(x(stride p + i)), one convolution beside the other; zero where that is outside.
struct ReluPointwiseForward {
  PointwiseShape shape;
  const float* x;
  const float* packed;
  float* raw;
};

// dx(stride p + i) = [x > 0] W_i^T draw_i(p),   dW_i += sum over p of draw_i(p) relu(x(stride p + i))^T.
struct ReluPointwiseBackward {
  PointwiseShape shape;
  const float *x, *gradient;
  const float* transposed;
  float* x_gradient;   // null if nobody wants it
  float* weight_sums;  // [count][out_padded][padded], added to; null if nobody wants them
};

struct ReluPointwiseKernels {
  int64_t lanes;
  // weights [count] of [channels out][channels in]. packed: [count][padded][out_padded] in blocks of columns;
  // transposed: for each convolution [channels out][padded] likewise, one behind the other.
  void (*pack)(const PointwiseShape& shape, const float* const* weights, float* packed);
  void (*pack_transposed)(const PointwiseShape& shape, const float* const* weights, float* transposed);
  // Floats of scratch memory of either pass.
  int64_t (*scratch)(const PointwiseShape& shape);
  void (*forward)(const ReluPointwiseForward& args, float* scratch);
  void (*backward)(const ReluPointwiseBackward& args, float* scratch);
};

VPDARTS_IN_EVERY_ISA(const ReluPointwiseKernels& relu_pointwise_kernels();)

}  // namespace vpdarts::cpu
