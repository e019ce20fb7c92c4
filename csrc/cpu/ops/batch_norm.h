// The small algebra of batch norms: from sums over pixels to statistics, folded coefficients and
// gradients. Matrices are [padded][padded], rows are output channels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vpdarts::cpu {

using Matrix = std::vector<float>;

inline Matrix zeros(int64_t count) { return Matrix(static_cast<size_t>(count)); }

// A node's r = relu(x) over all its pixels.
struct Moments {
  std::vector<float> mean;        // [padded]
  std::vector<float> covariance;  // [padded][padded], biased
};

// From blocks' moments, as relu_conv leaves them one behind the other; pixels of each block.
Moments combine_moments(int64_t padded, const std::vector<float>& blocks, const std::vector<int64_t>& pixels);

// From blocks' mean and sum of squares [2][padded], `stride` floats apart: mean and biased variance [padded].
void combine_statistics(int64_t padded, const float* blocks, int64_t stride,
                        const std::vector<int64_t>& pixels, float* mean, float* variance);

// Of W r, from the moments of r.
void statistics_1x1(int64_t padded, const float* weight, const Moments& moments, float* mean,
                    float* variance);

// One normalised convolution under its alpha, in the forward pass:  scale * raw + shift  per channel.
struct Normalised {
  float alpha;
  double eps;
  const float *mean, *variance;  // [padded]
  float scale(int64_t c) const;
  float shift(int64_t c) const { return -scale(c) * mean[c]; }
};

// Its gradient:  node_scale * g + raw_scale * raw + shift,  g the gradient of the node.
struct NormalisedGradient {
  std::vector<float> node_scale, raw_scale, shift;  // [padded]
  float alpha = 0;                                  // the gradient of alpha
};

// g_sum: sum of g; raw_sum: sum of g (raw - mean), both over `pixels`.
NormalisedGradient normalised_gradient(int64_t padded, const Normalised& norm, int64_t pixels,
                                       const float* g_sum, const float* raw_sum);

// raw_sum of the 1x1 convolution, from cross = sum of g (r - mean)^T.
std::vector<float> raw_sum_1x1(int64_t padded, const float* weight, const float* cross);

// What the 1x1 convolution's gradient is in g and r:  conv g + own r + shift.  Adds to own and shift.
void gradient_1x1(int64_t padded, const float* weight, const NormalisedGradient& gradient, float* conv,
                  float* own, float* shift);

// The gradient of the 1x1 weight.
std::vector<float> weight_gradient_1x1(int64_t padded, const float* weight,
                                       const NormalisedGradient& gradient, const float* cross,
                                       const float* covariance, int64_t pixels);

}  // namespace vpdarts::cpu
