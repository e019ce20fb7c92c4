// The block between two stages with the statistics of the batch, over plain memory: which kernels run on
// what, and the batch norms' small algebra between them.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels/relu_conv.h"
#include "cpu/kernels/trained_residual_block.h"
#include "cpu/ops/batch_norm.h"

namespace vpdarts::cpu {

struct TrainedResidualBlockWeights {
  const float *conv_a, *conv_b, *shortcut;  // [C_out, C, 3, 3], [C_out, C_out, 3, 3], [C_out, C, 1, 1]
  const float *gamma, *beta;                // [2, C_out]
};

// What a forward pass leaves behind of both convolutions' outputs.
struct TrainedResidualBlockState {
  float *raw_a, *raw_b;    // like the output, NHWC, aligned to 64 bytes
  float *mean, *variance;  // [2, C_out], the variance biased
};

// Null if not wanted, those of the weights and those of gamma and beta together.
struct TrainedResidualBlockGradients {
  float* x;  // like x
  float *conv_a, *conv_b, *shortcut;
  float *gamma, *beta;
};

class TrainedResidualBlockPasses {
 public:
  // batch: all images.
  TrainedResidualBlockPasses(const TrainedResidualBlockKernels& kernels, const ReluConvKernels& relu_conv,
                             const ResidualShape& batch, int64_t out_channels,
                             const TrainedResidualBlockWeights& weights, double eps)
      : kernels_(kernels),
        relu_conv_(relu_conv),
        batch_(batch),
        out_channels_(out_channels),
        weights_(weights),
        eps_(eps) {}

  // x and out NHWC, channels padded with zeros. state points to memory that is filled in.
  void forward(const float* x, const TrainedResidualBlockState& state, float* out) const;

  // gradient: of out.
  void backward(const float* x, const TrainedResidualBlockState& state, const float* gradient,
                const TrainedResidualBlockGradients& wanted) const;

 private:
  struct Norm;
  Norm norm(int64_t which, const TrainedResidualBlockState& state) const;
  ResidualShape shape(int64_t images) const;
  void combine(int64_t which, const std::vector<float>& statistics, const std::vector<int64_t>& pixels,
               const TrainedResidualBlockState& state) const;
  NormalisedGradient norm_gradient(int64_t which, const std::vector<float>& sums,
                                   const TrainedResidualBlockState& state,
                                   const TrainedResidualBlockGradients& wanted) const;
  std::vector<float> conv_b(bool transposed) const;
  std::vector<float> packed(bool transposed) const;
  void write_weights(const std::vector<std::vector<float>>& parts_a,
                     const std::vector<std::vector<float>>& parts_b,
                     const TrainedResidualBlockGradients& wanted) const;

  const TrainedResidualBlockKernels& kernels_;
  const ReluConvKernels& relu_conv_;
  ResidualShape batch_;
  int64_t out_channels_;
  TrainedResidualBlockWeights weights_;
  double eps_;
};

}  // namespace vpdarts::cpu
