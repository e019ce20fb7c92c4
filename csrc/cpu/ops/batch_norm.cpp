#include "cpu/ops/batch_norm.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace vpdarts::cpu {
namespace {

// product += a b, all [n][n].
void add_product(int64_t n, const float* a, const float* b, float* product) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < n; ++k) {
      const float factor = a[i * n + k];
      for (int64_t j = 0; j < n; ++j) product[i * n + j] += factor * b[k * n + j];
    }
  }
}

}  // namespace

// Of parts: mean = sum of n m / n, squares = sum of S + n (m - mean)^2 (Chan, Golub and LeVeque, 1983).
Moments combine_moments(int64_t padded, const std::vector<float>& blocks,
                        const std::vector<int64_t>& pixels) {
  const int64_t square = padded * padded, stride = padded + square;
  std::vector<double> mean(static_cast<size_t>(padded)), covariance(static_cast<size_t>(square));
  double total = 0;
  for (int64_t count : pixels) total += static_cast<double>(count);
  for (size_t b = 0; b < pixels.size(); ++b) {
    const float* block = blocks.data() + static_cast<int64_t>(b) * stride;
    for (int64_t c = 0; c < padded; ++c) mean[c] += block[c] * (static_cast<double>(pixels[b]) / total);
  }
  std::vector<double> difference(static_cast<size_t>(padded));
  for (size_t b = 0; b < pixels.size(); ++b) {
    const float* block = blocks.data() + static_cast<int64_t>(b) * stride;
    const double count = static_cast<double>(pixels[b]);
    for (int64_t c = 0; c < padded; ++c) difference[c] = block[c] - mean[c];
    for (int64_t i = 0; i < padded; ++i) {
      for (int64_t j = 0; j < padded; ++j)
        covariance[i * padded + j] += block[padded + i * padded + j] + count * difference[i] * difference[j];
    }
  }
  Moments moments{zeros(padded), zeros(square)};
  for (int64_t c = 0; c < padded; ++c) moments.mean[c] = static_cast<float>(mean[c]);
  for (int64_t i = 0; i < square; ++i) moments.covariance[i] = static_cast<float>(covariance[i] / total);
  return moments;
}

void combine_statistics(int64_t padded, const float* blocks, int64_t stride,
                        const std::vector<int64_t>& pixels, float* mean, float* variance) {
  double total = 0;
  for (int64_t count : pixels) total += static_cast<double>(count);
  for (int64_t c = 0; c < padded; ++c) {
    double sum = 0, squares = 0;
    for (size_t b = 0; b < pixels.size(); ++b)
      sum += blocks[static_cast<int64_t>(b) * stride + c] * (static_cast<double>(pixels[b]) / total);
    for (size_t b = 0; b < pixels.size(); ++b) {
      const float* block = blocks + static_cast<int64_t>(b) * stride;
      const double difference = block[c] - sum;
      squares += block[padded + c] + static_cast<double>(pixels[b]) * difference * difference;
    }
    mean[c] = static_cast<float>(sum);
    variance[c] = static_cast<float>(squares / total);
  }
}

void statistics_1x1(int64_t padded, const float* weight, const Moments& moments, float* mean,
                    float* variance) {
  std::vector<float> row = zeros(padded);
  for (int64_t c = 0; c < padded; ++c) {
    const float* w = weight + c * padded;
    double average = 0, spread = 0;
    std::fill(row.begin(), row.end(), 0.0f);
    for (int64_t k = 0; k < padded; ++k) {
      average += static_cast<double>(w[k]) * moments.mean[k];
      for (int64_t l = 0; l < padded; ++l) row[l] += w[k] * moments.covariance[k * padded + l];
    }
    for (int64_t l = 0; l < padded; ++l) spread += static_cast<double>(row[l]) * w[l];
    mean[c] = static_cast<float>(average);
    variance[c] = spread < 0 ? 0.0f : static_cast<float>(spread);  // NaN stays
  }
}

float Normalised::scale(int64_t c) const {
  return static_cast<float>(alpha / std::sqrt(static_cast<double>(variance[c]) + eps));
}

// Batch norm's gradient: scale * (g - mean(g) - normalised * mean(g normalised)).
NormalisedGradient normalised_gradient(int64_t padded, const Normalised& norm, int64_t pixels,
                                       const float* g_sum, const float* raw_sum) {
  NormalisedGradient result{zeros(padded), zeros(padded), zeros(padded)};
  const double count = static_cast<double>(pixels);
  double alpha = 0;
  for (int64_t c = 0; c < padded; ++c) {
    const double spread = static_cast<double>(norm.variance[c]) + norm.eps;
    const double scale = norm.alpha / std::sqrt(spread), raw_scale = -scale * raw_sum[c] / (count * spread);
    result.node_scale[c] = static_cast<float>(scale);
    result.raw_scale[c] = static_cast<float>(raw_scale);
    result.shift[c] = static_cast<float>(-scale * g_sum[c] / count - raw_scale * norm.mean[c]);
    alpha += raw_sum[c] / std::sqrt(spread);
  }
  result.alpha = static_cast<float>(alpha);
  return result;
}

std::vector<float> raw_sum_1x1(int64_t padded, const float* weight, const float* cross) {
  std::vector<float> sums = zeros(padded);
  for (int64_t c = 0; c < padded; ++c) {
    double sum = 0;
    for (int64_t k = 0; k < padded; ++k)
      sum += static_cast<double>(weight[c * padded + k]) * cross[c * padded + k];
    sums[c] = static_cast<float>(sum);
  }
  return sums;
}

// W^T (node_scale g + raw_scale W r + shift).
void gradient_1x1(int64_t padded, const float* weight, const NormalisedGradient& gradient, float* conv,
                  float* own, float* shift) {
  std::vector<float> scaled = zeros(padded * padded);  // W^T diag(raw_scale)
  for (int64_t k = 0; k < padded; ++k) {
    for (int64_t c = 0; c < padded; ++c) {
      const float w = weight[c * padded + k];
      conv[k * padded + c] = w * gradient.node_scale[c];
      scaled[k * padded + c] = w * gradient.raw_scale[c];
      shift[k] += w * gradient.shift[c];
    }
  }
  add_product(padded, scaled.data(), weight, own);
}

// node_scale G + raw_scale * pixels * W Cov: the shift has no part in it, as the gradients of raw add up to
// 0.
std::vector<float> weight_gradient_1x1(int64_t padded, const float* weight,
                                       const NormalisedGradient& gradient, const float* cross,
                                       const float* covariance, int64_t pixels) {
  std::vector<float> result = zeros(padded * padded);
  add_product(padded, weight, covariance, result.data());
  for (int64_t c = 0; c < padded; ++c) {
    const float factor = gradient.raw_scale[c] * static_cast<float>(pixels);
    for (int64_t k = 0; k < padded; ++k) {
      float& value = result[c * padded + k];
      value = factor * value + gradient.node_scale[c] * cross[c * padded + k];
    }
  }
  return result;
}

}  // namespace vpdarts::cpu
