// A cell in training as a textbook has it: one edge at a time, in double precision.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/kernels/dropout.h"

namespace vpdarts::cpu::textbook {

constexpr double kEps = 0.1;  // large, or the gradients of the weights of a lone channel cancel to nothing

enum class Drop { kNever, kQuarter, kNothing };  // kNothing: dropout with probability 0

struct Case {
  int64_t nodes, values, images, channels, height, width;
  Drop drop;
};

using Map = std::vector<double>;  // [images][height][width][channels]

// Mean and biased variance of a convolution's output.
struct Norm {
  Map mean, variance;
};

struct Textbook {
  const Case& c;
  const std::vector<float>&weight_1x1, &weight_3x3;
  const std::vector<Dropout>& drops;

  int64_t floats() const { return c.images * c.height * c.width * c.channels; }
  int64_t pixels() const { return c.images * c.height * c.width; }

  // Calls visit(pixel, neighbour, tap) for every pixel and each of its 3x3 neighbours inside the image.
  template <typename Visit>
  void neighbours(const Visit& visit) const {
    for (int64_t n = 0; n < c.images; ++n)
      for (int64_t y = 0; y < c.height; ++y)
        for (int64_t x = 0; x < c.width; ++x)
          for (int64_t dy = -1; dy <= 1; ++dy)
            for (int64_t dx = -1; dx <= 1; ++dx) {
              if (y + dy < 0 || y + dy >= c.height || x + dx < 0 || x + dx >= c.width) continue;
              const int64_t pixel = (n * c.height + y) * c.width + x;
              visit(pixel, pixel + dy * c.width + dx, 3 * dy + dx + 4);
            }
  }

  // 1 over the number of a pixel's neighbours inside the image.
  std::vector<double> shares() const {
    std::vector<double> result(static_cast<size_t>(pixels()));
    neighbours([&](int64_t p, int64_t, int64_t) { result[p] += 1; });
    for (double& count : result) count = 1 / count;
    return result;
  }

  // What a skip connection multiplies an element with.
  double skip_factor(int64_t e, int64_t place) const {
    if (drops.empty() || !drops[e].drops) return 1;
    uint32_t bits = (static_cast<uint32_t>(place) ^ drops[e].low) * 0x21f0aaadu;
    bits = (bits ^ bits >> 15 ^ drops[e].high) * 0x735a2d97u;
    bits = (bits ^ bits >> 16) * 0x21f0aaadu;
    bits ^= bits >> 15;
    return bits < drops[e].threshold ? 4294967296.0 / drops[e].threshold : 0;
  }

  double weight(int64_t e, bool three, int64_t to, int64_t from, int64_t tap) const {
    const int64_t pair = (e * c.channels + to) * c.channels + from;
    return three ? weight_3x3[pair * 9 + tap] : weight_1x1[pair];
  }

  Map convolve(int64_t e, bool three, const Map& x) const {
    Map out(static_cast<size_t>(floats()));
    neighbours([&](int64_t p, int64_t q, int64_t tap) {
      if (!three && tap != 4) return;
      for (int64_t to = 0; to < c.channels; ++to)
        for (int64_t from = 0; from < c.channels; ++from)
          out[p * c.channels + to] +=
              weight(e, three, to, from, tap) * std::fmax(x[q * c.channels + from], 0.0);
    });
    return out;
  }

  Norm norm(const Map& raw) const {
    const double count = static_cast<double>(pixels());
    Norm result{Map(static_cast<size_t>(c.channels)), Map(static_cast<size_t>(c.channels))};
    for (int64_t k = 0; k < floats(); ++k) result.mean[k % c.channels] += raw[k] / count;
    for (int64_t k = 0; k < floats(); ++k)
      result.variance[k % c.channels] += std::pow(raw[k] - result.mean[k % c.channels], 2) / count;
    return result;
  }

  // node += the edge's mixed operation of x; the norms of its convolutions.
  std::vector<Norm> add_edge(int64_t e, const float* alpha, const Map& x, Map& node) const {
    const auto share = shares();
    for (int64_t k = 0; k < floats(); ++k) node[k] += alpha[1] * skip_factor(e, k) * x[k];
    neighbours([&](int64_t p, int64_t q, int64_t) {
      for (int64_t k = 0; k < c.channels; ++k)
        node[p * c.channels + k] += alpha[4] * share[p] * x[q * c.channels + k];
    });
    std::vector<Norm> norms;
    for (const bool three : {false, true}) {
      const Map raw = convolve(e, three, x);
      norms.push_back(norm(raw));
      for (int64_t k = 0; k < floats(); ++k)
        node[k] += alpha[2 + three] * (raw[k] - norms.back().mean[k % c.channels]) /
                   std::sqrt(norms.back().variance[k % c.channels] + kEps);
    }
    return norms;
  }

  // From g, the gradient of the node that the edge enters: adds to all the others, x_gradient that of x.
  void differentiate_edge(int64_t e, const float* alpha, const Map& x, const Map& g, Map& x_gradient,
                          Map& gradient_1x1, Map& gradient_3x3, Map& alpha_gradient) const {
    const auto share = shares();
    const double count = static_cast<double>(pixels());
    double* row = alpha_gradient.data() + 5 * e;
    for (int64_t k = 0; k < floats(); ++k) {
      row[1] += g[k] * skip_factor(e, k) * x[k];
      x_gradient[k] += alpha[1] * skip_factor(e, k) * g[k];
    }
    neighbours([&](int64_t p, int64_t q, int64_t) {
      for (int64_t k = 0; k < c.channels; ++k) {
        row[4] += g[p * c.channels + k] * share[p] * x[q * c.channels + k];
        x_gradient[q * c.channels + k] += alpha[4] * share[p] * g[p * c.channels + k];
      }
    });
    for (const bool three : {false, true}) {
      Map normalised = convolve(e, three, x), raw_gradient(normalised.size());
      const Norm moments = norm(normalised);
      Map mean(static_cast<size_t>(c.channels)), product(static_cast<size_t>(c.channels));
      for (int64_t k = 0; k < floats(); ++k) {
        const int64_t to = k % c.channels;
        normalised[k] = (normalised[k] - moments.mean[to]) / std::sqrt(moments.variance[to] + kEps);
        row[2 + three] += g[k] * normalised[k];
        mean[to] += g[k] / count;
        product[to] += g[k] * normalised[k] / count;
      }
      for (int64_t k = 0; k < floats(); ++k) {
        const int64_t to = k % c.channels;
        raw_gradient[k] = alpha[2 + three] / std::sqrt(moments.variance[to] + kEps) *
                          (g[k] - mean[to] - normalised[k] * product[to]);
      }
      neighbours([&](int64_t p, int64_t q, int64_t tap) {
        if (!three && tap != 4) return;
        for (int64_t to = 0; to < c.channels; ++to)
          for (int64_t from = 0; from < c.channels; ++from) {
            const double value = x[q * c.channels + from], down = raw_gradient[p * c.channels + to];
            if (value <= 0) continue;
            const int64_t pair = (e * c.channels + to) * c.channels + from;
            (three ? gradient_3x3[pair * 9 + tap] : gradient_1x1[pair]) += down * value;
            x_gradient[q * c.channels + from] += down * weight(e, three, to, from, tap);
          }
      });
    }
  }
};

}  // namespace vpdarts::cpu::textbook
