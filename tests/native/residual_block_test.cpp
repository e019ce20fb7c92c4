// The block between two stages, with fixed statistics and in training, against the textbook in double
// precision, without PyTorch, so that it can run under sanitizers. Every buffer has exactly the size that the
// interface asks for and holds NaN before it is written; each call of a kernel has scratch memory of its own.
// Exit status 0 if all is well.
#include "cpu/kernels/residual_block.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cpu/ops/parallel.h"
#include "cpu/ops/trained_residual_block_passes.h"

using namespace vpdarts::cpu;

namespace {

constexpr double kEps = 0.1;  // large, or gradients through a batch norm of few values cancel to nothing
const ResidualBlockKernels& kFixed = VPDARTS_ISA::residual_block_kernels();
const TrainedResidualBlockKernels& kTrained = VPDARTS_ISA::trained_residual_block_kernels();
const ReluConvKernels& kReluConv = VPDARTS_ISA::relu_conv_kernels();

std::mt19937 random_bits(0);

std::vector<float> normal(int64_t count, double scale = 1) {
  std::normal_distribution<float> draw(0, static_cast<float>(scale));
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = draw(random_bits);
  return values;
}

std::vector<float> unwritten(int64_t count) { return std::vector<float>(static_cast<size_t>(count), NAN); }

Floats scratch_of(int64_t floats) {
  Floats memory = allocate(floats);
  std::fill_n(memory.get(), floats, NAN);
  return memory;
}

// The kernels, each call with memory of exactly its size.
ReluConvKernels guarded_relu_conv() {
  ReluConvKernels guarded = kReluConv;
  guarded.forward = [](const ReluConvForward& args, float*) {
    kReluConv.forward(args, scratch_of(kReluConv.forward_scratch(args.block, args.edges)).get());
  };
  guarded.backward = [](const ReluConvBackward& args, float*) {
    kReluConv.backward(args, scratch_of(kReluConv.backward_scratch(args.block, args.edges)).get());
  };
  return guarded;
}

TrainedResidualBlockKernels guarded_trained() {
  TrainedResidualBlockKernels guarded = kTrained;
  guarded.forward = [](const TrainedResidualBlockForward& args, float*) {
    kTrained.forward(args, scratch_of(kTrained.forward_scratch(args.shape)).get());
  };
  guarded.backward = [](const TrainedResidualBlockBackward& args, float*) {
    kTrained.backward(args, scratch_of(kTrained.backward_scratch(args.shape)).get());
  };
  return guarded;
}

struct Case {
  int64_t images, height, width, channels, out_channels;
};

using Map = std::vector<double>;  // [images][height][width][channels]

struct Image {
  int64_t images, height, width, channels;
  int64_t floats() const { return images * height * width * channels; }
  int64_t at(int64_t n, int64_t y, int64_t x) const { return ((n * height + y) * width + x) * channels; }
};

struct Weights {
  std::vector<float> a, b, shortcut, gamma, beta;  // as in TrainedResidualBlockWeights
};

// A convolution of a rectified map, or of none and 1x1 the identity's; with its adjoints.
struct Convolution {
  Image in, out;
  int64_t taps, stride;  // 3 or 1 in each direction; of a stride 2 without taps: a 2x2 average pool
  const std::vector<float>& weight;

  // Calls visit(place of the output's pixel, of the input's, tap, share) for all pairs.
  template <typename Visit>
  void pairs(const Visit& visit) const {
    const int64_t size = taps == 3 ? 3 : stride, before = taps == 3 ? 1 : 0;
    for (int64_t n = 0; n < out.images; ++n)
      for (int64_t y = 0; y < out.height; ++y)
        for (int64_t x = 0; x < out.width; ++x) {
          const int64_t top = y * stride - before, left = x * stride - before;
          const double share =
              taps == 3 ? 1 : 1.0 / double(std::min(size, in.height - top) * std::min(size, in.width - left));
          for (int64_t r = 0; r < size; ++r)
            for (int64_t k = 0; k < size; ++k) {
              if (top + r < 0 || top + r >= in.height || left + k < 0 || left + k >= in.width) continue;
              visit(out.at(n, y, x), in.at(n, top + r, left + k), taps == 3 ? 3 * r + k : 0, share);
            }
        }
  }
  int64_t place(int64_t to, int64_t from, int64_t tap) const {
    return (to * in.channels + from) * taps * taps + tap;
  }
  double value(double x) const { return taps == 3 ? std::fmax(x, 0.0) : x; }

  Map forward(const Map& x) const {
    Map result(static_cast<size_t>(out.floats()));
    pairs([&](int64_t p, int64_t q, int64_t tap, double share) {
      for (int64_t to = 0; to < out.channels; ++to)
        for (int64_t from = 0; from < in.channels; ++from)
          result[p + to] += share * weight[place(to, from, tap)] * value(x[q + from]);
    });
    return result;
  }

  // From g, the gradient of the output: adds to those of x and of the weight.
  void backward(const Map& x, const Map& g, Map& x_gradient, Map& weight_gradient) const {
    pairs([&](int64_t p, int64_t q, int64_t tap, double share) {
      for (int64_t to = 0; to < out.channels; ++to)
        for (int64_t from = 0; from < in.channels; ++from) {
          if (taps == 3 && x[q + from] <= 0) continue;
          weight_gradient[place(to, from, tap)] += share * g[p + to] * x[q + from];
          x_gradient[q + from] += share * g[p + to] * weight[place(to, from, tap)];
        }
    });
  }
};

// A batch norm with the statistics of its input.
struct Norm {
  int64_t channels;
  const float *gamma, *beta;
  Map mean, variance;

  Norm(const Map& raw, const float* gamma, const float* beta, int64_t channels)
      : channels(channels), gamma(gamma), beta(beta), mean(channels), variance(channels) {
    const double count = double(raw.size()) / double(channels);
    for (size_t k = 0; k < raw.size(); ++k) mean[k % channels] += raw[k] / count;
    for (size_t k = 0; k < raw.size(); ++k)
      variance[k % channels] += std::pow(raw[k] - mean[k % channels], 2) / count;
  }
  double normalised(const Map& raw, size_t k) const {
    return (raw[k] - mean[k % channels]) / std::sqrt(variance[k % channels] + kEps);
  }
  Map forward(const Map& raw) const {
    Map out(raw.size());
    for (size_t k = 0; k < raw.size(); ++k)
      out[k] = gamma[k % channels] * normalised(raw, k) + beta[k % channels];
    return out;
  }
  Map backward(const Map& raw, const Map& g, double* gamma_gradient, double* beta_gradient) const {
    const double count = double(raw.size()) / double(channels);
    for (size_t k = 0; k < raw.size(); ++k) {
      gamma_gradient[k % channels] += g[k] * normalised(raw, k);
      beta_gradient[k % channels] += g[k];
    }
    Map out(raw.size());
    for (size_t k = 0; k < raw.size(); ++k) {
      const size_t c = k % channels;
      out[k] = gamma[c] / std::sqrt(variance[c] + kEps) *
               (g[k] - beta_gradient[c] / count - normalised(raw, k) * gamma_gradient[c] / count);
    }
    return out;
  }
};

int failures = 0;

void report(const Case& c, const char* what, double error) {
  if (error < 2e-5) return;
  ++failures;
  std::printf("images %ld size %ldx%ld channels %ld -> %ld: %s: error %g\n", long(c.images), long(c.height),
              long(c.width), long(c.channels), long(c.out_channels), what, error);
}

// The greatest error relative to the largest expected value or to `scale`; infinite if anything is NaN. Each
// row of `got` is padded, with zeros.
double compare(const float* got, const Map& expected, int64_t channels, int64_t padded, double scale = 0) {
  double worst = 0, largest = std::fmax(scale, 1e-30);
  for (int64_t k = 0; k < int64_t(expected.size()) / channels * padded; ++k) {
    const double wanted = k % padded < channels ? expected[k / padded * channels + k % padded] : 0;
    const double error = std::fabs(got[k] - wanted);
    worst = std::isfinite(error) ? std::fmax(worst, error) : INFINITY;
    largest = std::fmax(largest, std::fabs(wanted));
  }
  return worst / largest;
}

std::vector<float> padded_map(const std::vector<float>& map, int64_t channels, int64_t padded) {
  std::vector<float> result(map.size() / channels * padded);
  for (size_t k = 0; k < map.size(); ++k) result[k / channels * padded + k % channels] = map[k];
  return result;
}

struct Problem {
  explicit Problem(const Case& c)
      : c(c),
        in{c.images, c.height, c.width, c.channels},
        out{c.images, (c.height + 1) / 2, (c.width + 1) / 2, c.out_channels},
        shape{c.images, c.height, c.width, c.channels, pad(c.channels), pad(c.out_channels)},
        x(normal(in.floats())),
        weights{normal(c.out_channels * c.channels * 9, std::sqrt(1.0 / double(9 * c.channels))),
                normal(c.out_channels * c.out_channels * 9, std::sqrt(1.0 / double(9 * c.out_channels))),
                normal(c.out_channels * c.channels, std::sqrt(1.0 / double(c.channels))),
                normal(2 * c.out_channels), normal(2 * c.out_channels)} {}

  static int64_t pad(int64_t channels) { return (channels + kFixed.lanes - 1) / kFixed.lanes * kFixed.lanes; }
  Convolution conv_a() const { return {in, out, 3, 2, weights.a}; }
  Convolution conv_b() const { return {out, out, 3, 1, weights.b}; }
  Convolution shortcut() const { return {in, out, 1, 2, weights.shortcut}; }

  Case c;
  Image in, out;
  ResidualShape shape;
  std::vector<float> x;
  Weights weights;
};

// gamma and beta as scale and shift, channels together in memory and apart.
void test_fixed(const Problem& p) {
  const int64_t channels = p.c.out_channels;
  const auto scaled = [&](Map map, int64_t norm) {
    for (size_t k = 0; k < map.size(); ++k)
      map[k] = p.weights.gamma[norm * channels + k % channels] * map[k] +
               p.weights.beta[norm * channels + k % channels];
    return map;
  };
  const Map x(p.x.begin(), p.x.end());
  Map expected = scaled(p.conv_b().forward(scaled(p.conv_a().forward(x), 0)), 1);
  const Map shortcut = p.shortcut().forward(x);
  for (size_t k = 0; k < expected.size(); ++k) expected[k] += shortcut[k];

  auto folded = unwritten(kFixed.weight_floats(p.shape.padded, p.shape.out_padded));
  kFixed.fold(p.c.channels, channels, p.shape.padded, p.shape.out_padded,
              {p.weights.a.data(), p.weights.b.data(), p.weights.shortcut.data(), p.weights.gamma.data(),
               p.weights.beta.data()},
              folded.data());
  const int64_t pixels = p.c.height * p.c.width, width = p.c.width;
  std::vector<float> apart(p.x.size());
  for (int64_t k = 0; k < int64_t(p.x.size()); ++k) {
    const int64_t n = k / (pixels * p.c.channels), pixel = k / p.c.channels % pixels, c = k % p.c.channels;
    apart[(n * p.c.channels + c) * pixels + pixel] = p.x[k];
  }
  const int64_t image = pixels * p.c.channels, step = p.c.channels;
  for (const ConstImageView& view : {ConstImageView{p.x.data(), image, width * step, step, 1},
                                     ConstImageView{apart.data(), image, width, 1, pixels}}) {
    auto out = unwritten(p.shape.out().floats());
    kFixed.forward(p.shape, folded.data(), view, out.data(), scratch_of(kFixed.scratch(p.shape)).get());
    report(p.c, "fixed statistics", compare(out.data(), expected, channels, p.shape.out_padded));
  }
}

void test_trained(const Problem& p) {
  const int64_t channels = p.c.out_channels, padded = p.shape.out_padded, floats = p.shape.out().floats();
  const ReluConvKernels relu_conv = guarded_relu_conv();
  const TrainedResidualBlockKernels trained = guarded_trained();
  const Weights& w = p.weights;
  const TrainedResidualBlockPasses block(
      trained, relu_conv, p.shape, channels,
      {w.a.data(), w.b.data(), w.shortcut.data(), w.gamma.data(), w.beta.data()}, kEps);

  // Forward.
  const auto input = padded_map(p.x, p.c.channels, p.shape.padded);
  const Floats raw_a = scratch_of(floats), raw_b = scratch_of(floats);
  auto mean = unwritten(2 * channels), variance = unwritten(2 * channels), out = unwritten(floats);
  const TrainedResidualBlockState state{raw_a.get(), raw_b.get(), mean.data(), variance.data()};
  block.forward(input.data(), state, out.data());

  const Map x(p.x.begin(), p.x.end());
  const Map of_a = p.conv_a().forward(x);
  const Norm norm_a(of_a, w.gamma.data(), w.beta.data(), channels);
  const Map a = norm_a.forward(of_a), of_b = p.conv_b().forward(a);
  const Norm norm_b(of_b, w.gamma.data() + channels, w.beta.data() + channels, channels);
  Map expected = norm_b.forward(of_b);
  const Map shortcut = p.shortcut().forward(x);
  for (size_t k = 0; k < expected.size(); ++k) expected[k] += shortcut[k];
  report(p.c, "raw a", compare(raw_a.get(), of_a, channels, padded));
  report(p.c, "raw b", compare(raw_b.get(), of_b, channels, padded));
  report(p.c, "output", compare(out.data(), expected, channels, padded));
  for (const auto& [norm, first] : {std::pair{&norm_a, int64_t{0}}, std::pair{&norm_b, channels}}) {
    report(p.c, "mean", compare(mean.data() + first, norm->mean, channels, channels, 0.1));
    report(p.c, "variance", compare(variance.data() + first, norm->variance, channels, channels));
  }

  // Backward, with every choice of gradients.
  const auto gradient = normal(p.out.floats());
  const Map g(gradient.begin(), gradient.end());
  Map gamma(2 * channels), beta(2 * channels), down(g.size()), of_x(x.size());
  Map weight_a(w.a.size()), weight_b(w.b.size()), weight_shortcut(w.shortcut.size());
  p.conv_b().backward(a, norm_b.backward(of_b, g, gamma.data() + channels, beta.data() + channels), down,
                      weight_b);
  p.conv_a().backward(x, norm_a.backward(of_a, down, gamma.data(), beta.data()), of_x, weight_a);
  p.shortcut().backward(x, g, of_x, weight_shortcut);
  const auto laid_out = padded_map(gradient, channels, padded);
  for (int wanted = 0; wanted < 8; ++wanted) {
    const bool wants_x = wanted & 1, wants_weights = wanted & 2, wants_norms = wanted & 4;
    const auto room = [](bool wants, size_t count) { return unwritten(wants ? int64_t(count) : 0); };
    auto got_x = room(wants_x, input.size()), got_a = room(wants_weights, w.a.size()),
         got_b = room(wants_weights, w.b.size()), got_shortcut = room(wants_weights, w.shortcut.size()),
         got_gamma = room(wants_norms, 2 * channels), got_beta = room(wants_norms, 2 * channels);
    const auto to = [](std::vector<float>& room) { return room.empty() ? nullptr : room.data(); };
    block.backward(input.data(), state, laid_out.data(),
                   {to(got_x), to(got_a), to(got_b), to(got_shortcut), to(got_gamma), to(got_beta)});
    if (wants_x) report(p.c, "gradient of x", compare(got_x.data(), of_x, p.c.channels, p.shape.padded));
    if (wants_weights) {
      report(p.c, "gradient of weight a", compare(got_a.data(), weight_a, 9, 9, 1));
      report(p.c, "gradient of weight b", compare(got_b.data(), weight_b, 9, 9, 1));
      report(p.c, "gradient of the shortcut", compare(got_shortcut.data(), weight_shortcut, 1, 1));
    }
    if (wants_norms) {
      report(p.c, "gradient of gamma", compare(got_gamma.data(), gamma, channels, channels));
      report(p.c, "gradient of beta", compare(got_beta.data(), beta, channels, channels));
    }
  }
}

}  // namespace

int main() {
  for (const Case& c : {Case{2, 1, 1, 1, 1}, Case{3, 1, 6, 3, 5}, Case{5, 2, 2, 8, 16}, Case{4, 5, 7, 3, 5},
                        Case{9, 9, 3, 12, 24}, Case{2, 16, 16, 16, 32}, Case{13, 8, 8, 8, 16},
                        Case{1, 8, 6, 24, 8}, Case{3, 7, 12, 17, 33}, Case{17, 4, 4, 4, 40}}) {
    const Problem problem(c);
    test_fixed(problem);
    test_trained(problem);
  }
  std::printf("%d failed\n", failures);
  return failures != 0;
}
