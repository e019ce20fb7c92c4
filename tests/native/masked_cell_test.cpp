// The masked_cell kernels against a plain loop, without PyTorch, so that they can run under sanitizers.
// Every buffer has exactly the size that the interface asks for. Exit status 0 if all is well.
#include "cpu/kernels/masked_cell.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "cpu/ops/masked_cell_plan.h"

using namespace vpdarts::cpu;

namespace {

std::mt19937 random_bits(0);

std::vector<float> normal(int64_t count, float scale = 1) {
  std::normal_distribution<float> draw(0, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = draw(random_bits);
  return values;
}

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};

std::unique_ptr<float, Free> aligned(int64_t floats) {
  const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
  return std::unique_ptr<float, Free>(static_cast<float*>(std::aligned_alloc(64, bytes)));
}

struct Case {
  int64_t nodes, variants, images, channels, height, width;
  bool shared, channels_last;
};

constexpr double kEps = 1e-5;

// One variant by the textbook. x, result: [images, channels, height, width].
std::vector<double> reference(const Case& c, const std::vector<double>& x, const std::vector<float>& conv_1x1,
                              const std::vector<float>& conv_3x3, const std::vector<float>& mean,
                              const std::vector<float>& variance, const float* alpha) {
  const int64_t C = c.channels, H = c.height, W = c.width;
  const auto at = [&](int64_t n, int64_t ch, int64_t y, int64_t i) { return ((n * C + ch) * H + y) * W + i; };
  std::vector<std::vector<double>> node{x};
  int64_t e = 0;
  for (int64_t i = 1; i < c.nodes; ++i) {
    std::vector<double> sum(x.size(), 0.0);
    for (int64_t j = 0; j < i; ++j, ++e) {
      const float* row = alpha + 5 * e;
      const std::vector<double>& from = node[j];
      for (int64_t n = 0; n < c.images; ++n)
        for (int64_t to = 0; to < C; ++to)
          for (int64_t y = 0; y < H; ++y)
            for (int64_t px = 0; px < W; ++px) {
              double one = 0, three = 0, pool = 0;
              int count = 0;
              for (int64_t dy = -1; dy <= 1; ++dy)
                for (int64_t dx = -1; dx <= 1; ++dx) {
                  if (y + dy < 0 || y + dy >= H || px + dx < 0 || px + dx >= W) continue;
                  ++count;
                  pool += from[at(n, to, y + dy, px + dx)];
                  for (int64_t ci = 0; ci < C; ++ci) {
                    const double value = std::fmax(from[at(n, ci, y + dy, px + dx)], 0.0);
                    three += value * conv_3x3[((e * C + to) * C + ci) * 9 + (dy + 1) * 3 + dx + 1];
                    if (dy == 0 && dx == 0) one += value * conv_1x1[(e * C + to) * C + ci];
                  }
                }
              const auto norm = [&](double raw, int64_t o) {
                const int64_t k = (e * 2 + o) * C + to;
                return (raw - mean[k]) / std::sqrt(variance[k] + kEps);
              };
              sum[at(n, to, y, px)] += row[1] * from[at(n, to, y, px)] + row[2] * norm(one, 0) +
                                       row[3] * norm(three, 1) + row[4] * pool / count;
            }
    }
    node.push_back(sum);
  }
  return node.back();
}

double run(const Case& c) {
  const MaskedCellKernels& kernels = VPDARTS_ISA::masked_cell_kernels();
  const int64_t C = c.channels, edges = c.nodes * (c.nodes - 1) / 2;
  const int64_t padded = (C + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
  const int64_t pixels = c.height * c.width, image = C * pixels, inputs = c.shared ? 1 : c.variants;
  const auto x = normal(inputs * c.images * image);
  const auto conv_1x1 = normal(edges * C * C, 0.5f), conv_3x3 = normal(edges * C * C * 9, 0.2f);
  const auto mean = normal(edges * 2 * C);
  auto variance = normal(edges * 2 * C);
  for (float& value : variance) value = std::fabs(value) + 0.5f;
  auto alpha = normal(edges * 5, 0.5f);
  const std::vector<float> base = alpha;
  for (int64_t v = 1; v < c.variants; ++v) {  // one op left out of each variant
    alpha.insert(alpha.end(), base.begin(), base.end());
    alpha[v * edges * 5 + v * 7 % (edges * 5)] = 0;
  }

  FoldedWeights weights(kernels, C, padded, edges, conv_1x1.data(), conv_3x3.data(), mean.data(),
                        variance.data(), false, c.variants, alpha.data(), kEps);
  for (int64_t job = 0; job < weights.count(); ++job) weights.transform(job);
  const BlockShape shape{c.images, c.height, c.width, C, padded};
  std::vector<float> out(static_cast<size_t>(c.variants * c.images * pixels * padded));
  const auto source = [&](int64_t v) {
    const float* data = x.data() + (c.shared ? 0 : v) * c.images * image;
    return c.channels_last ? ConstImageView{data, image, c.width * C, C, 1}
                           : ConstImageView{data, image, c.width, 1, pixels};
  };
  const auto target = [&](int64_t v) {
    return ImageView{out.data() + v * c.images * pixels * padded, pixels * padded, c.width * padded, padded,
                     1};
  };
  std::vector<int64_t> value_of;
  if (c.shared) {
    const MaskedCellPlan plan(weights, c.nodes, c.variants);
    const SharedPlan view = plan.view();
    value_of = plan.output();
    std::vector<ImageView> outs;
    for (int64_t u = 0; u < view.values[c.nodes - 1]; ++u) outs.push_back(target(u));
    const auto scratch = aligned(kernels.shared_scratch(shape, view));
    kernels.shared(shape, view, source(0), outs.data(), scratch.get());
  } else {
    const auto scratch = aligned(kernels.single_scratch(shape, c.nodes));
    for (int64_t v = 0; v < c.variants; ++v) {
      std::vector<EdgeTerm> terms;
      for (int64_t e = 0; e < edges; ++e) terms.push_back(weights.term(v, e));
      kernels.single(shape, c.nodes, terms.data(), source(v), target(v), scratch.get());
      value_of.push_back(v);
    }
  }

  double error = 0, largest = 1e-30;
  for (int64_t v = 0; v < c.variants; ++v) {
    const ConstImageView in = source(v);
    std::vector<double> images;
    for (int64_t n = 0; n < c.images; ++n)
      for (int64_t ch = 0; ch < C; ++ch)
        for (int64_t y = 0; y < c.height; ++y)
          for (int64_t i = 0; i < c.width; ++i)
            images.push_back(in.data[n * in.image + y * in.row + i * in.pixel + ch * in.channel]);
    const auto expected =
        reference(c, images, conv_1x1, conv_3x3, mean, variance, alpha.data() + v * edges * 5);
    const ImageView got = target(value_of[v]);
    size_t k = 0;
    for (int64_t n = 0; n < c.images; ++n)
      for (int64_t ch = 0; ch < C; ++ch)
        for (int64_t y = 0; y < c.height; ++y)
          for (int64_t i = 0; i < c.width; ++i, ++k) {
            const float value = got.data[n * got.image + y * got.row + i * got.pixel + ch];
            error = std::fmax(error, std::fabs(value - expected[k]));
            largest = std::fmax(largest, std::fabs(expected[k]));
          }
  }
  return error / largest;
}

}  // namespace

int main() {
  int failures = 0;
  for (const bool shared : {true, false}) {
    for (const bool channels_last : {true, false}) {
      for (const Case& c :
           {Case{4, 9, 2, 8, 9, 7, shared, channels_last}, Case{4, 3, 1, 1, 1, 1, shared, channels_last},
            Case{3, 4, 3, 3, 4, 4, shared, channels_last}, Case{2, 2, 1, 16, 5, 2, shared, channels_last},
            Case{5, 6, 1, 5, 3, 6, shared, channels_last}, Case{6, 3, 2, 2, 2, 5, shared, channels_last},
            Case{4, 31, 1, 4, 8, 8, shared, channels_last}, Case{4, 2, 7, 24, 4, 4, shared, channels_last},
            Case{3, 3, 1, 48, 4, 5, shared, channels_last}}) {
        const double error = run(c);
        if (error < 1e-5) continue;
        ++failures;
        std::printf("nodes %ld variants %ld images %ld channels %ld size %ldx%ld shared %d: error %g\n",
                    long(c.nodes), long(c.variants), long(c.images), long(c.channels), long(c.height),
                    long(c.width), shared, error);
      }
    }
  }
  std::printf("%d failed\n", failures);
  return failures != 0;
}
