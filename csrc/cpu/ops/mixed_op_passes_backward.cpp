// The backward pass of mixed_op.
//
//   sums    of g, and of g (term - mean) for every term: gradients of alpha and of last batch norms
//   second  stages: from raw = node_scale g + raw_scale raw + shift down to h = relu(norm of the first),
//   whose
//           gradient is kept, with the sums for the first stage's batch norm
//   first   stages likewise, and the gradient of x over all branches
#include <algorithm>
#include <cmath>

#include "cpu/ops/mixed_op_norms.h"
#include "cpu/ops/mixed_op_passes.h"
#include "cpu/ops/parallel.h"

namespace vpdarts::cpu {
namespace {

// sums [groups * count] of equally many units each, in their order.
std::vector<double> add_up(const Matrix& units, int64_t groups, int64_t count) {
  std::vector<double> result(static_cast<size_t>(groups * count));
  const int64_t each = groups * count == 0 ? 0 : static_cast<int64_t>(units.size()) / (groups * count);
  for (int64_t i = 0; i < groups; ++i) {
    for (int64_t unit = 0; unit < each; ++unit) {
      for (int64_t j = 0; j < count; ++j) result[i * count + j] += units[(i * each + unit) * count + j];
    }
  }
  return result;
}

}  // namespace

struct MixedOpPasses::Backward {
  const MixedOpState& state;
  const float* gradient;
  const MixedOpGradients& wanted;
  Norms norms;
  ScratchSpace scratch;
  std::vector<NormalisedGradient> last{}, inner{};  // [V][O], of branches and of first stages of two
  std::vector<Matrix> weights{};                    // [parts * stages], depthwise and pointwise sums
  std::vector<int64_t> inner_of{};                  // [O], among the branches of two stages, or -1
  int64_t inners = 0;
  Floats gradients{};  // of h, [V][inners][N]

  bool with_weights() const { return !wanted.depthwise.empty() && wanted.depthwise[0] != nullptr; }
};

float* MixedOpPasses::inner_gradient(const Backward& b, int64_t v, int64_t inner, int64_t n) const {
  return b.gradients.get() + ((v * b.inners + inner) * args_.images + n) * out_floats();
}

// The gradient of a batch norm of `alpha` times its output; adds to those of gamma and beta.
NormalisedGradient MixedOpPasses::norm_gradient(const Backward& b, int64_t v, int64_t norm, double alpha,
                                                const double* g_sum, const double* raw_sum) const {
  const int64_t padded = args_.shape.padded, channels = args_.channels, at = (v * norms() + norm) * channels;
  NormalisedGradient result{zeros(padded), zeros(padded), zeros(padded)};
  const double count = static_cast<double>(args_.images * args_.shape.out().pixels());
  double of_alpha = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const double spread = b.state.variance[at + c] + args_.eps[norm], share = 1 / std::sqrt(spread);
    const double gamma = args_.gamma[norm * channels + c], beta = args_.beta[norm * channels + c];
    const double scale = alpha * gamma * share;
    const double raw_scale = fixed() ? 0 : -scale * raw_sum[c] / (count * spread);
    result.node_scale[c] = static_cast<float>(scale);
    result.raw_scale[c] = static_cast<float>(raw_scale);
    if (!fixed())
      result.shift[c] = static_cast<float>(-scale * g_sum[c] / count - raw_scale * b.state.mean[at + c]);
    of_alpha += gamma * share * raw_sum[c] + beta * g_sum[c];
    if (b.wanted.gamma == nullptr) continue;
    b.wanted.gamma[norm * channels + c] += static_cast<float>(alpha * share * raw_sum[c]);
    b.wanted.beta[norm * channels + c] += static_cast<float>(alpha * g_sum[c]);
  }
  result.alpha = static_cast<float>(of_alpha);
  return result;
}

// The first pass; writes the gradient of alpha.
void MixedOpPasses::reduce(Backward& b) const {
  const int64_t padded = args_.shape.padded, most = static_cast<int64_t>(args_.branches.size()),
                count = (1 + most) * padded, units = args_.variants * args_.images;
  Matrix sums = zeros(units * count);
  const Matrix nothing = zeros(padded);
  run(units, b.scratch, [&](int64_t unit, float* memory) {
    const int64_t v = unit / args_.images, n = unit % args_.images;
    const float* g = b.gradient + unit * out_floats();
    std::vector<Term> terms;
    for (const MixedOpBranch& branch : args_.branches) {
      // Of no term, g again: sums that nobody reads.
      const int64_t last = branch.norm + (branch.stages > 1 ? 1 : 0);
      const float* mean = branch.norm < 0 ? nothing.data() : b.norms.mean.data() + b.norms.at(v, last);
      terms.push_back({branch.kind == BranchKind::none ? g : image(b.state, branch, v, n, memory), mean});
      if (pools(branch)) memory += in_lines(out_floats());
    }
    kernels_.reduce({args_.shape.out(), g, most, terms.data(), sums.data() + unit * count});
  });
  const std::vector<double> totals = add_up(sums, args_.variants, count);
  for (int64_t i = 0; i < args_.variants * most; ++i) {
    const int64_t v = i / most, o = i % most;
    const MixedOpBranch& branch = args_.branches[o];
    const double *g_sum = totals.data() + v * count, *raw_sum = g_sum + (1 + o) * padded;
    const float alpha = args_.alpha[i];
    if (branch.norm >= 0) {
      b.last.push_back(norm_gradient(b, v, branch.norm + (branch.stages > 1 ? 1 : 0), alpha, g_sum, raw_sum));
    } else {
      b.last.push_back({Matrix(static_cast<size_t>(padded), alpha), zeros(padded), zeros(padded)});
      double sum = 0;
      for (int64_t c = 0; c < args_.channels; ++c) sum += raw_sum[c];
      b.last.back().alpha = branch.kind == BranchKind::none ? 0.0f : static_cast<float>(sum);
    }
    if (b.wanted.alpha != nullptr) b.wanted.alpha[i] = b.last.back().alpha;
  }
}

// One stage of an image: the gradient of its input is added to `gradient`.
void MixedOpPasses::differentiate_stage(Backward& b, int64_t part, int64_t stage, const StageShape& s,
                                        const float* map, const RawGradient& raw, float* gradient,
                                        float* scratch) const {
  const int64_t taps = args_.stages[stage].kernel * args_.stages[stage].kernel * s.padded;
  float* sums = nullptr;
  if (b.with_weights()) {
    Matrix& mine = b.weights[part * static_cast<int64_t>(args_.stages.size()) + stage];
    if (mine.empty()) mine = zeros(taps + s.padded * s.padded);
    sums = mine.data();
  }
  kernels_.separable_backward(
      {s, weights(stage), map, raw, gradient, sums, sums != nullptr ? sums + taps : nullptr}, scratch);
}

// The second pass.
void MixedOpPasses::differentiate_second(Backward& b) const {
  const StageShape s = args_.shape.next();
  const int64_t most = static_cast<int64_t>(args_.branches.size()), count = 2 * s.padded,
                units = args_.variants * args_.images;
  Matrix sums = zeros(units * b.inners * count);
  b.gradients = allocate(units * b.inners * out_floats());
  run_in_parts(units, b.scratch, [&](int64_t turned, int64_t part, float* map) {
    const int64_t unit = units - 1 - turned, v = unit / args_.images, n = unit % args_.images;
    float* scratch = map + in_lines(args_.shape.map_floats());
    for (int64_t o = 0; o < most; ++o) {
      const MixedOpBranch& branch = args_.branches[o];
      if (branch.stages < 2) continue;
      const int64_t at = b.norms.at(v, branch.norm), inner = b.inner_of[o];
      const float* inner_raw = raw(b.state, v, branch.first, n);
      float* gradient = inner_gradient(b, v, inner, n);
      kernels_.rectify({s, inner_raw, b.norms.scale.data() + at, b.norms.shift.data() + at, map});
      std::fill_n(gradient, out_floats(), 0.0f);
      differentiate_stage(b, part, branch.first + 1, s, map,
                          raw_gradient(b.last[v * most + o], b.gradient + unit * out_floats(),
                                       raw(b.state, v, branch.first + 1, n)),
                          gradient, scratch);
      kernels_.mask(s, map, gradient);
      const Term own{inner_raw, b.norms.mean.data() + at};
      kernels_.reduce(
          {s.in(), gradient, 1, &own, sums.data() + ((v * b.inners + inner) * args_.images + n) * count});
    }
  });
  const std::vector<double> totals = add_up(sums, args_.variants * b.inners, count);
  for (int64_t v = 0; v < args_.variants; ++v) {
    for (int64_t o = 0; o < most; ++o) {
      const MixedOpBranch& branch = args_.branches[o];
      if (branch.stages < 2) continue;
      const double* sum = totals.data() + (v * b.inners + b.inner_of[o]) * count;
      b.inner.push_back(norm_gradient(b, v, branch.norm, 1, sum, sum + s.padded));
    }
  }
}

// The last pass, for one image.
void MixedOpPasses::differentiate_first(Backward& b, int64_t part, int64_t v, int64_t n, float* map) const {
  const StageShape& s = args_.shape;
  const int64_t most = static_cast<int64_t>(args_.branches.size()), unit = v * args_.images + n;
  float *scratch = map + in_lines(s.map_floats()),
        *gradient = b.wanted.x != nullptr ? b.wanted.x + unit * s.in().floats() : nullptr;
  const float* g = b.gradient + unit * out_floats();
  if (gradient != nullptr) std::fill_n(gradient, s.in().floats(), 0.0f);
  if (gradient != nullptr || b.with_weights()) {
    kernels_.rectify({s, x(v, n), nullptr, nullptr, map});
    for (int64_t o = 0; o < most; ++o) {
      const MixedOpBranch& branch = args_.branches[o];
      if (branch.kind != BranchKind::separable) continue;
      const int64_t inner = b.inner_of[o];
      const float* own = raw(b.state, v, branch.first, n);
      const RawGradient of =
          inner < 0 ? raw_gradient(b.last[v * most + o], g, own)
                    : raw_gradient(b.inner[v * b.inners + inner], inner_gradient(b, v, inner, n), own);
      differentiate_stage(b, part, branch.first, s, map, of, gradient, scratch);
    }
    if (gradient != nullptr) kernels_.mask(s, map, gradient);
  }
  const Matrix ones(static_cast<size_t>(s.padded), 1.0f), nothing = zeros(s.padded);
  for (int64_t o = 0; o < most; ++o) {
    const MixedOpBranch& branch = args_.branches[o];
    const NormalisedGradient& of = b.last[v * most + o];
    if (pools(branch) && gradient != nullptr) {
      float* of_pool = scratch + in_lines(out_floats());
      const RawGradient down = raw_gradient(of, g, image(b.state, branch, v, n, scratch));
      kernels_.raw_gradient(s.out(), down, of_pool);
      kernels_.pool_backward(pool(branch, x(v, n)), of_pool, gradient, of_pool + in_lines(out_floats()));
    } else if (branch.kind == BranchKind::skip && gradient != nullptr) {
      const Term terms[2] = {{gradient, ones.data()}, {g, of.node_scale.data()}};
      kernels_.weighted_sum({s.out(), 2, terms, nothing.data(), gradient});
    } else if (branch.kind == BranchKind::given && b.wanted.given[branch.first] != nullptr) {
      float* to = b.wanted.given[branch.first] + unit * out_floats();
      const RawGradient down = raw_gradient(of, g, term(args_.given[branch.first], v, n));
      kernels_.raw_gradient(s.out(), down, to);
    }
  }
}

// Of all parts, in their order.
void MixedOpPasses::write_weights(const Backward& b) const {
  const int64_t padded = args_.shape.padded, c = args_.channels,
                stages = static_cast<int64_t>(args_.stages.size());
  for (int64_t stage = 0; stage < stages; ++stage) {
    const int64_t taps = args_.stages[stage].kernel * args_.stages[stage].kernel;
    Matrix sum = zeros(taps * padded + padded * padded);
    for (int64_t part = 0; part < b.scratch.threads(); ++part) {
      const Matrix& some = b.weights[part * stages + stage];
      for (size_t i = 0; i < some.size(); ++i) sum[i] += some[i];
    }
    for (int64_t i = 0; i < c * taps; ++i) b.wanted.depthwise[stage][i] = sum[i % taps * padded + i / taps];
    for (int64_t i = 0; i < c * c; ++i) b.wanted.pointwise[stage][i] = sum[(taps + i % c) * padded + i / c];
  }
}

void MixedOpPasses::backward(const MixedOpState& state, const float* gradient,
                             const MixedOpGradients& wanted) const {
  Backward b{state, gradient, wanted, folded(state), ScratchSpace(scratch_floats())};
  b.weights.resize(static_cast<size_t>(b.scratch.threads()) * args_.stages.size());
  for (const MixedOpBranch& branch : args_.branches)
    b.inner_of.push_back(branch.stages > 1 ? b.inners++ : -1);
  reduce(b);
  const bool stages = wanted.x != nullptr || b.with_weights();
  if (b.inners > 0 && (stages || wanted.gamma != nullptr)) differentiate_second(b);
  const bool given = std::any_of(wanted.given.begin(), wanted.given.end(),
                                 [](const float* data) { return data != nullptr; });
  if (stages || given) {
    run_in_parts(args_.variants * args_.images, b.scratch, [&](int64_t unit, int64_t part, float* memory) {
      differentiate_first(b, part, unit / args_.images, unit % args_.images, memory);
    });
  }
  if (b.with_weights()) write_weights(b);
}

}  // namespace vpdarts::cpu
