// A mixed operation, forward and backward, against the textbook in double precision, without PyTorch, so that
// it can run under sanitizers. Every buffer has exactly the size that the interface asks for and holds NaN
// before it is written; each call of a kernel has scratch memory of its own. Exit status 0 if all is well.
#include "cpu/kernels/mixed_op.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cpu/ops/mixed_op_passes.h"
#include "cpu/ops/parallel.h"

using namespace vpdarts::cpu;

namespace {

constexpr double kEps = 0.1;  // large, or gradients through a batch norm of few values cancel to nothing
const MixedOpKernels& kKernels = VPDARTS_ISA::mixed_op_kernels();

std::mt19937 random_bits(0);

std::vector<float> normal(int64_t count, double scale = 1) {
  std::normal_distribution<float> draw(0, static_cast<float>(scale));
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = draw(random_bits);
  return values;
}

std::vector<float> unwritten(int64_t count) { return std::vector<float>(static_cast<size_t>(count), NAN); }

Floats scratch_of(const StageShape& shape) {
  const int64_t floats = kKernels.scratch(shape);
  Floats memory = allocate(floats);
  std::fill_n(memory.get(), floats, NAN);
  return memory;
}

// The kernels, each call with memory of exactly its size.
MixedOpKernels guarded() {
  MixedOpKernels guarded = kKernels;
  guarded.separable = [](const Separable& args, float*) {
    kKernels.separable(args, scratch_of(args.shape).get());
  };
  guarded.separable_backward = [](const SeparableBackward& args, float*) {
    kKernels.separable_backward(args, scratch_of(args.shape).get());
  };
  guarded.pool = [](const Pool& args, float* out, float*) {
    kKernels.pool(args, out, scratch_of(args.shape).get());
  };
  guarded.pool_backward = [](const Pool& args, const float* gradient, float* to, float*) {
    kKernels.pool_backward(args, gradient, to, scratch_of(args.shape).get());
  };
  return guarded;
}

using Map = std::vector<double>;  // [images][height][width][channels]

struct Image {
  int64_t images, height, width, channels;
  int64_t floats() const { return images * height * width * channels; }
  int64_t at(int64_t n, int64_t y, int64_t x) const { return ((n * height + y) * width + x) * channels; }
};

// The windows of a convolution or a pool: visit(place of the output's pixel, of the input's, tap).
template <typename Visit>
void windows(const Image& in, const Image& out, int64_t kernel, int64_t dilation, const Visit& visit) {
  const int64_t stride = in.height > out.height || in.width > out.width ? 2 : 1;
  const int64_t padding = dilation * (kernel - 1) / 2;
  for (int64_t n = 0; n < out.images; ++n)
    for (int64_t y = 0; y < out.height; ++y)
      for (int64_t x = 0; x < out.width; ++x)
        for (int64_t tap = 0; tap < kernel * kernel; ++tap) {
          const int64_t row = y * stride + dilation * (tap / kernel) - padding,
                        column = x * stride + dilation * (tap % kernel) - padding;
          if (row < 0 || row >= in.height || column < 0 || column >= in.width) continue;
          visit(out.at(n, y, x), in.at(n, row, column), tap);
        }
}

struct Case {
  int64_t images, height, width, channels, stride;
};

int failures = 0;

// Of a case, the greatest error relative to the largest expected value or to `scale`; infinite if anything is
// NaN. Each row of `got` is padded, with zeros.
void report(const Case& c, const char* what, const float* got, const Map& expected, int64_t channels,
            int64_t padded, double scale = 0) {
  double worst = 0, largest = std::fmax(scale, 1e-30);
  for (int64_t k = 0; k < int64_t(expected.size()) / channels * padded; ++k) {
    const double wanted = k % padded < channels ? expected[k / padded * channels + k % padded] : 0;
    const double error = std::fabs(got[k] - wanted);
    worst = std::isfinite(error) ? std::fmax(worst, error) : INFINITY;
    largest = std::fmax(largest, std::fabs(wanted));
  }
  if (worst / largest < 3e-5) return;
  ++failures;
  std::printf("images %ld size %ldx%ld channels %ld stride %ld: %s: error %g\n", long(c.images),
              long(c.height), long(c.width), long(c.channels), long(c.stride), what, worst / largest);
}

std::vector<float> padded_map(const std::vector<float>& map, int64_t channels, int64_t padded) {
  std::vector<float> result(map.size() / channels * padded);
  for (size_t k = 0; k < map.size(); ++k) result[k / channels * padded + k % channels] = map[k];
  return result;
}

// A batch norm without gamma and beta.
struct Norm {
  int64_t channels;
  Map mean, variance;

  Norm(const Map& raw, int64_t channels) : channels(channels), mean(channels), variance(channels) {
    const double count = double(raw.size()) / double(channels);
    for (size_t k = 0; k < raw.size(); ++k) mean[k % channels] += raw[k] / count;
    for (size_t k = 0; k < raw.size(); ++k)
      variance[k % channels] += std::pow(raw[k] - mean[k % channels], 2) / count;
  }
  Map forward(const Map& raw) const {
    Map out(raw.size());
    for (size_t k = 0; k < raw.size(); ++k)
      out[k] = (raw[k] - mean[k % channels]) / std::sqrt(variance[k % channels] + kEps);
    return out;
  }
  Map backward(const Map& raw, const Map& g) const {
    const double count = double(raw.size()) / double(channels);
    const Map own = forward(raw);
    Map sum(channels), product(channels), out(raw.size());
    for (size_t k = 0; k < raw.size(); ++k) {
      sum[k % channels] += g[k] / count;
      product[k % channels] += g[k] * own[k] / count;
    }
    for (size_t k = 0; k < raw.size(); ++k)
      out[k] = (g[k] - sum[k % channels] - own[k] * product[k % channels]) /
               std::sqrt(variance[k % channels] + kEps);
    return out;
  }
};

// One stage: pointwise depthwise relu(x).
struct Stage {
  Image in, out;
  int64_t kernel, dilation;
  std::vector<float> depthwise, pointwise;

  Stage(const Image& in, const Image& out, int64_t kernel, int64_t dilation)
      : in(in),
        out(out),
        kernel(kernel),
        dilation(dilation),
        depthwise(normal(in.channels * kernel * kernel, 1 / double(kernel))),
        pointwise(normal(in.channels * in.channels, std::sqrt(1 / double(in.channels)))) {}

  Map inner(const Map& x) const {
    Map d(static_cast<size_t>(out.floats()));
    windows(in, out, kernel, dilation, [&](int64_t p, int64_t q, int64_t tap) {
      for (int64_t c = 0; c < in.channels; ++c)
        d[p + c] += depthwise[c * kernel * kernel + tap] * std::fmax(x[q + c], 0.0);
    });
    return d;
  }
  Map forward(const Map& x) const {
    const Map d = inner(x);
    const int64_t c = in.channels;
    Map raw(d.size());
    for (int64_t k = 0; k < int64_t(d.size()); ++k)
      for (int64_t i = 0; i < c; ++i) raw[k] += pointwise[k % c * c + i] * d[k / c * c + i];
    return raw;
  }
  // From g, the gradient of raw: adds to those of x and of the weights.
  void backward(const Map& x, const Map& g, Map& of_x, Map& of_depthwise, Map& of_pointwise) const {
    const Map d = inner(x);
    const int64_t c = in.channels, taps = kernel * kernel;
    Map of_d(d.size());
    for (int64_t k = 0; k < int64_t(d.size()); ++k)
      for (int64_t i = 0; i < c; ++i) {
        of_d[k / c * c + i] += pointwise[k % c * c + i] * g[k];
        of_pointwise[k % c * c + i] += d[k / c * c + i] * g[k];
      }
    windows(in, out, kernel, dilation, [&](int64_t p, int64_t q, int64_t tap) {
      for (int64_t i = 0; i < c; ++i) {
        if (x[q + i] <= 0) continue;
        of_depthwise[i * taps + tap] += of_d[p + i] * x[q + i];
        of_x[q + i] += of_d[p + i] * depthwise[i * taps + tap];
      }
    });
  }
};

// A pool and where the gradient of each output goes: shares of the input's pixels.
Map pooled(const Image& in, const Image& out, bool maximum, const Map& x, const Map* g, Map* of_x) {
  Map result(static_cast<size_t>(out.floats()), maximum ? -INFINITY : 0), count(result.size());
  std::vector<int64_t> first(result.size());
  windows(in, out, 3, 1, [&](int64_t p, int64_t q, int64_t) {
    for (int64_t c = 0; c < in.channels; ++c) {
      count[p + c] += 1;
      if (!maximum) result[p + c] += x[q + c];
      if (maximum && x[q + c] > result[p + c]) result[p + c] = x[q + c], first[p + c] = q + c;
    }
  });
  for (size_t k = 0; k < result.size() && !maximum; ++k) result[k] /= count[k];
  if (of_x == nullptr) return result;
  for (size_t k = 0; k < result.size() && maximum; ++k) (*of_x)[first[k]] += (*g)[k];
  if (!maximum)
    windows(in, out, 3, 1, [&](int64_t p, int64_t q, int64_t) {
      for (int64_t c = 0; c < in.channels; ++c) (*of_x)[q + c] += (*g)[p + c] / count[p + c];
    });
  return result;
}

// The branches none, both pools with a batch norm, a skip connection (a given term at stride 2), a separable
// convolution of two stages and one of one, kernels and dilations as asked for; and what they come to.
struct Problem {
  Problem(const Case& c, int64_t kernel, int64_t dilation)
      : c(c),
        in{c.images, c.height, c.width, c.channels},
        out{c.images, (c.height + c.stride - 1) / c.stride, (c.width + c.stride - 1) / c.stride, c.channels},
        padded((c.channels + kKernels.lanes - 1) / kKernels.lanes * kKernels.lanes),
        stages{{in, out, kernel, 1}, {out, out, 3, dilation}, {in, out, 3, 2}},
        x(normal(in.floats())),
        alpha(normal(6)),
        given(normal(out.floats())),
        gradient(normal(out.floats())),
        laid_out(padded_map(x, c.channels, padded)),
        laid_given(padded_map(given, c.channels, padded)),
        ones(5 * c.channels, 1),
        nothing(5 * c.channels, 0),
        exact(x.begin(), x.end()),
        g(gradient.begin(), gradient.end()),
        inner(stages[0].forward(exact)),
        hidden(Norm(inner, c.channels).forward(inner)),
        terms{pooled(in, out, true, exact, nullptr, nullptr), pooled(in, out, false, exact, nullptr, nullptr),
              skips() ? exact : Map(given.begin(), given.end()), stages[1].forward(hidden),
              stages[2].forward(exact)} {}

  bool skips() const { return c.stride == 1; }
  // Term t behind its batch norm, which the third has none of.
  Map term(size_t t) const { return t == 2 ? terms[t] : Norm(terms[t], c.channels).forward(terms[t]); }
  // The weighted sum.
  Map output() const {
    Map sum(static_cast<size_t>(out.floats()));
    for (size_t t = 0; t < terms.size(); ++t) {
      const Map of = term(t);
      for (size_t k = 0; k < sum.size(); ++k) sum[k] += alpha[1 + t] * of[k];
    }
    return sum;
  }
  // The gradient of term t before it.
  Map down(size_t t) const {
    Map of(g);
    for (double& value : of) value *= alpha[1 + t];
    return t == 2 ? of : Norm(terms[t], c.channels).backward(terms[t], of);
  }
  MixedOpArguments arguments() const {
    MixedOpArguments args{};
    const int64_t border = std::max<int64_t>(2, (stages[0].kernel - 1) / 2);
    args.shape = {c.height, c.width, c.stride, padded, border};
    args.variants = 1, args.images = c.images, args.channels = c.channels;
    args.x = {laid_out.data(), 1};
    args.alpha = alpha.data();
    args.branches = {
        {BranchKind::none, -1, 0, 0},        {BranchKind::maximum_pool, 0, 0, 0},
        {BranchKind::average_pool, 1, 0, 0}, {skips() ? BranchKind::skip : BranchKind::given, -1, 0, 0},
        {BranchKind::separable, 2, 0, 2},    {BranchKind::separable, 4, 2, 1}};
    for (const Stage& s : stages)
      args.stages.push_back({s.kernel, s.dilation, s.depthwise.data(), s.pointwise.data()});
    if (!skips()) args.given = {{laid_given.data(), 1}};
    args.eps.assign(5, kEps);
    args.gamma = ones.data(), args.beta = nothing.data();
    return args;
  }

  Case c;
  Image in, out;
  int64_t padded;
  std::vector<Stage> stages;
  std::vector<float> x, alpha, given, gradient, laid_out, laid_given, ones, nothing;
  Map exact, g, inner, hidden;
  std::vector<Map> terms;
};

void test_forward(const Problem& p, const MixedOpPasses& edge, const MixedOpState& state) {
  const int64_t channels = p.c.channels;
  auto result = unwritten(p.out.floats() / channels * p.padded);
  edge.forward(state, result.data());
  report(p.c, "output", result.data(), p.output(), channels, p.padded);
  const Map* const normed[5] = {&p.terms[0], &p.terms[1], &p.inner, &p.terms[3], &p.terms[4]};
  for (int64_t m = 0; m < 5; ++m) {
    const Norm norm(*normed[m], channels);
    report(p.c, "mean", state.mean + m * channels, norm.mean, channels, channels, 0.1);
    report(p.c, "variance", state.variance + m * channels, norm.variance, channels, channels, 1e-3);
  }
}

// With what it has found as given statistics.
void test_fixed(const Problem& p, const MixedOpKernels& kernels, const MixedOpState& state) {
  const int64_t channels = p.c.channels;
  std::vector<float> statistics;
  for (int64_t m = 0; m < 5; ++m) {
    statistics.insert(statistics.end(), state.mean + m * channels, state.mean + (m + 1) * channels);
    statistics.insert(statistics.end(), state.variance + m * channels, state.variance + (m + 1) * channels);
  }
  MixedOpArguments args = p.arguments();
  args.statistics = statistics.data();
  const MixedOpPasses edge(kernels, args);
  auto result = unwritten(p.out.floats() / channels * p.padded);
  edge.forward_fixed(result.data());
  report(p.c, "output with given statistics", result.data(), p.output(), channels, p.padded);
}

// The gradients of everything.
struct Expected {
  explicit Expected(const Problem& p) : x(p.exact.size()), alpha(6), beta(p.c.channels) {
    for (const Stage& s : p.stages) {
      depthwise.emplace_back(s.depthwise.size());
      pointwise.emplace_back(s.pointwise.size());
    }
    Map of_hidden(p.hidden.size());
    p.stages[1].backward(p.hidden, p.down(3), of_hidden, depthwise[1], pointwise[1]);
    const Map of_inner = Norm(p.inner, p.c.channels).backward(p.inner, of_hidden);
    p.stages[0].backward(p.exact, of_inner, x, depthwise[0], pointwise[0]);
    p.stages[2].backward(p.exact, p.down(4), x, depthwise[2], pointwise[2]);
    for (size_t t = 0; t < 2; ++t) {
      const Map of = p.down(t);
      pooled(p.in, p.out, t == 0, p.exact, &of, &x);
    }
    for (size_t k = 0; k < x.size() && p.skips(); ++k) x[k] += p.alpha[3] * p.g[k];
    for (size_t t = 0; t < p.terms.size(); ++t) {
      const Map term = p.term(t);
      for (size_t k = 0; k < p.g.size(); ++k) alpha[1 + t] += p.g[k] * term[k];
    }
    for (size_t k = 0; k < p.g.size(); ++k) beta[k % beta.size()] += p.alpha[5] * p.g[k];
  }

  Map x, alpha, beta;  // beta: of the last batch norm
  std::vector<Map> depthwise, pointwise;
};

// One of the choices of gradients, five bits.
void test_backward(const Problem& p, const MixedOpPasses& edge, const MixedOpState& state,
                   const Expected& expected, int wanted) {
  const int64_t channels = p.c.channels;
  const auto room = [&](int bit, int64_t count) { return unwritten(wanted >> bit & 1 ? count : 0); };
  const auto to = [](std::vector<float>& some) { return some.empty() ? nullptr : some.data(); };
  auto x = room(0, int64_t(p.laid_out.size())), alpha = room(1, 6),
       given = room(2, p.skips() ? 0 : int64_t(p.laid_given.size()));
  std::vector<std::vector<float>> weights;
  MixedOpGradients where{to(x), to(alpha), {}, {}, {}, nullptr, nullptr};
  for (const Stage& s : p.stages) {
    weights.push_back(room(3, int64_t(s.depthwise.size())));
    where.depthwise.push_back(to(weights.back()));
    weights.push_back(room(3, int64_t(s.pointwise.size())));
    where.pointwise.push_back(to(weights.back()));
  }
  if (!p.skips()) where.given.push_back(to(given));
  std::vector<float> gamma(wanted >> 4 & 1 ? 5 * channels : 0), beta(gamma);  // added to
  where.gamma = to(gamma), where.beta = to(beta);
  edge.backward(state, padded_map(p.gradient, channels, p.padded).data(), where);

  if (!x.empty()) report(p.c, "gradient of x", x.data(), expected.x, channels, p.padded);
  if (!alpha.empty()) report(p.c, "gradient of alpha", alpha.data(), expected.alpha, 6, 6);
  if (!given.empty()) report(p.c, "gradient of given", given.data(), p.down(2), channels, p.padded);
  for (size_t s = 0; s < p.stages.size() && where.depthwise[0] != nullptr; ++s) {
    report(p.c, "gradient of depthwise", where.depthwise[s], expected.depthwise[s], 1, 1, 1);
    report(p.c, "gradient of pointwise", where.pointwise[s], expected.pointwise[s], 1, 1, 1);
  }
  if (!beta.empty())
    report(p.c, "gradient of the last beta", beta.data() + 4 * channels, expected.beta, channels, channels,
           1);
}

void test(const Problem& p) {
  const MixedOpKernels kernels = guarded();
  const MixedOpPasses edge(kernels, p.arguments());
  auto raw = unwritten(3 * int64_t(p.laid_given.size())), mean = unwritten(5 * p.c.channels),
       variance = unwritten(5 * p.c.channels);
  const MixedOpState state{raw.data(), mean.data(), variance.data()};
  test_forward(p, edge, state);
  test_fixed(p, kernels, state);
  const Expected expected(p);
  for (int wanted = 0; wanted < 32; ++wanted) test_backward(p, edge, state, expected, wanted);
}

}  // namespace

int main() {
  for (const Case& c : {Case{2, 1, 1, 1, 1}, Case{4, 1, 6, 3, 1}, Case{5, 2, 2, 8, 2}, Case{3, 5, 7, 3, 2},
                        Case{3, 7, 5, 17, 1}, Case{7, 9, 3, 12, 2}, Case{2, 16, 16, 16, 1},
                        Case{2, 16, 34, 4, 2}, Case{1, 8, 6, 33, 1}, Case{9, 4, 4, 20, 1}}) {
    test(Problem(c, 3, 1));
    test(Problem(c, 5, 2));
    test(Problem(c, 7, 1));
  }
  std::printf("%d failed\n", failures);
  return failures != 0;
}
