// The torch-free interface of the mixed_sum kernels: a node where both convolutions' raw outputs are given,
//
//   node = sum_e [ skip_e keep_e x_e + pool_e pool(x_e) + sum_o scale_eo raw_eo ] + shift,
//
// o the 1x1 and the 3x3 convolution, batch norm and alpha folded into scale_eo and shift, keep_e given too.
#pragma once

#include "block.h"
#include "isas.h"
#include "relu_conv.h"

namespace vpdarts::cpu {

struct MixedSumEdge {
  const float *x, *keep;  // the source node; what dropout multiplies it with, null for 1
  const float* raw[2];
  const float* scale[2];  // [padded]
  float skip, pool;
};

struct MixedSumForward {
  Block block;
  int64_t edges;
  const MixedSumEdge* edge;  // [edges]
  const float* shift;        // [padded]
  float* node;
};

// One edge in the first pass of the backward pass, g the gradient of the node; null is what nobody wants.
struct MixedSumReducedEdge {
  const float *x, *keep;
  const float* raw[2];
  const float* raw_mean[2];  // [padded]
  float skip, pool;
  float* x_gradient;     // skip keep g + pool pool^T(g)
  float* keep_gradient;  // skip x g
  float* raw_sum[2];     // sum of g (raw - raw_mean), [padded]
  float* skip_sum;       // sum of g keep x, [padded]
  float* pool_sum;       // sum of g pool(x), [padded]
};

// Sums over a block's pixels, and the gradients that need none of them.
struct MixedSumReduce {
  Block block;
  int64_t edges;
  const MixedSumReducedEdge* edge;  // [edges]
  const float* gradient;            // g
  float* sum;                       // of g, [padded]
};

struct MixedSumKernels {
  // statistics = mean of raw [padded] and sum of (raw - mean)^2 [padded].
  void (*statistics)(const Block& block, const float* raw, float* statistics);
  // Floats of scratch memory, 64-byte aligned.
  int64_t (*scratch)(const Block& block, int64_t edges);
  void (*forward)(const MixedSumForward& args, float* scratch);
  void (*reduce)(const MixedSumReduce& args, float* scratch);
  // The second pass: out[i] = gradient[i], a tensor for each raw output that wants it.
  void (*raw_gradients)(const Block& block, int64_t count, const RawGradient* gradient, float* const* out);
};

VPDARTS_IN_EVERY_ISA(const MixedSumKernels& mixed_sum_kernels();)

}  // namespace vpdarts::cpu
