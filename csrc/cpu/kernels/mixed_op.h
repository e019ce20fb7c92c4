// The torch-free interface of the mixed_op kernels: the parts of one edge's candidate operations, image by
// image, so that everything of an image stays in the second-level cache.
#pragma once

#include "block.h"
#include "isas.h"
#include "relu_conv.h"

namespace vpdarts::cpu {

// A stage of a separable convolution, or a pool: images of height x width pixels, and of the output
// ceil(height / stride) x ceil(width / stride). Maps have a border of so many pixels on every side.
struct StageShape {
  int64_t height, width, stride, padded, border;
  int64_t out_height() const { return (height + stride - 1) / stride; }
  int64_t out_width() const { return (width + stride - 1) / stride; }
  Block in() const { return {1, height, width, padded}; }
  Block out() const { return {1, out_height(), out_width(), padded}; }
  // The stage behind it.
  StageShape next() const { return {out_height(), out_width(), 1, padded, border}; }
  // A map of the input.
  int64_t map_row() const { return (width + 2 * border) * padded; }
  int64_t map_floats() const { return (height + 2 * border) * map_row(); }
};

// Weights as `pack` leaves them.
struct SeparableWeights {
  int64_t kernel, dilation;
  const float* depthwise;   // [kernel * kernel][padded]
  const float* pointwise;   // [padded][padded], from in to out in blocks of columns
  const float* transposed;  // likewise, from out to in
  int64_t padding() const { return dilation * (kernel - 1) / 2; }
};

// map = relu(scale x + shift) inside a border of zeros; scale and shift [padded], or null for relu(x).
struct RectifiedMapOf {
  StageShape shape;
  const float *x, *scale, *shift;
  float* map;
};

struct Separable {
  StageShape shape;
  SeparableWeights weights;
  const float* map;
  float* raw;
};

// From the gradient of raw to those of the map's interior and of the weights.
struct SeparableBackward {
  StageShape shape;
  SeparableWeights weights;
  const float* map;
  RawGradient raw;
  float* gradient;        // [height][width][padded], added to; null if nobody wants it
  float* depthwise_sums;  // [kernel * kernel][padded], added to; null likewise
  float* pointwise_sums;  // [padded][padded], from in to out, added to
};

// A 3x3 pool with a padding of 1, its maximum or its average without the padding.
struct Pool {
  StageShape shape;
  bool maximum;
  const float* x;
};

// An image and a value for each channel [padded]: the scale of a weighted sum, the mean of a reduction.
struct Term {
  const float *image, *channel;
};

// out = sum over terms of channel image + shift.
struct WeightedSum {
  Block block;
  int64_t count;
  const Term* terms;
  const float* shift;
  float* out;
};

// sums [1 + count][padded] = the sums over the pixels of g, and of g (image - channel) for every term.
struct Reduction {
  Block block;
  const float* g;
  int64_t count;
  const Term* terms;
  float* sums;
};

struct MixedOpKernels {
  int64_t lanes;
  // depthwise [C, k, k], pointwise [C, C] to `packed`: depthwise, pointwise, transposed, one behind the
  // other.
  void (*pack)(int64_t channels, int64_t padded, int64_t kernel, const float* depthwise,
               const float* pointwise, float* packed);
  void (*rectify)(const RectifiedMapOf& args);
  // Floats of scratch memory of a stage or a pool and their backward passes.
  int64_t (*scratch)(const StageShape& shape);
  void (*separable)(const Separable& args, float* scratch);
  void (*separable_backward)(const SeparableBackward& args, float* scratch);
  void (*pool)(const Pool& args, float* out, float* scratch);
  // x_gradient += that of the pool's output, sent back.
  void (*pool_backward)(const Pool& args, const float* gradient, float* x_gradient, float* scratch);
  void (*weighted_sum)(const WeightedSum& args);
  void (*reduce)(const Reduction& args);
  // statistics = mean of raw [padded] and sum of (raw - mean)^2 [padded].
  void (*statistics)(const Block& block, const float* raw, float* statistics);
  void (*raw_gradient)(const Block& block, const RawGradient& gradient, float* out);
  // gradient = [map > 0] gradient.
  void (*mask)(const StageShape& shape, const float* map, float* gradient);
};

VPDARTS_IN_EVERY_ISA(const MixedOpKernels& mixed_op_kernels();)
namespace avx2_narrow {  // four lanes
const MixedOpKernels& mixed_op_kernels();
}

}  // namespace vpdarts::cpu
