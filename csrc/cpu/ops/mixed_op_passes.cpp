#include "cpu/ops/mixed_op_passes.h"

#include <algorithm>
#include <cmath>

#include "cpu/ops/mixed_op_norms.h"
#include "cpu/ops/parallel.h"

namespace vpdarts::cpu {

MixedOpPasses::MixedOpPasses(const MixedOpKernels& kernels, const MixedOpArguments& args)
    : kernels_(kernels), args_(args) {
  const int64_t padded = args_.shape.padded;
  for (const MixedOpStage& stage : args_.stages) {
    packed_.push_back(zeros(stage.kernel * stage.kernel * padded + 2 * padded * padded));
    kernels_.pack(args_.channels, padded, stage.kernel, stage.depthwise, stage.pointwise,
                  packed_.back().data());
  }
}

SeparableWeights MixedOpPasses::weights(int64_t stage) const {
  const MixedOpStage& of = args_.stages[stage];
  const float* depthwise = packed_[stage].data();
  const float* pointwise = depthwise + of.kernel * of.kernel * args_.shape.padded;
  return {of.kernel, of.dilation, depthwise, pointwise, pointwise + args_.shape.padded * args_.shape.padded};
}

// What x alone, or a given term, decides: raw outputs of first stages, and the statistics of all but second
// stages. sums [M][2][padded], those of the image.
void MixedOpPasses::first_pass(const MixedOpState& state, int64_t v, int64_t n, float* sums,
                               float* memory) const {
  const StageShape& s = args_.shape;
  float *map = memory, *image = map + in_lines(s.map_floats()), *scratch = image + in_lines(out_floats());
  const auto measure = [&](const MixedOpBranch& branch, const float* of) {
    if (!fixed()) kernels_.statistics(s.out(), of, sums + branch.norm * 2 * s.padded);
  };
  bool mapped = false;
  for (const MixedOpBranch& branch : args_.branches) {
    if (v >= variants_of(branch)) continue;
    if (branch.kind == BranchKind::separable) {
      if (!mapped) kernels_.rectify({s, x(v, n), nullptr, nullptr, map});
      mapped = true;
      float* to = raw(state, v, branch.first, n);
      kernels_.separable({s, weights(branch.first), map, to}, scratch);
      measure(branch, to);
    } else if (branch.norm >= 0 && !fixed()) {
      if (pools(branch)) kernels_.pool(pool(branch, x(v, n)), image, scratch);
      measure(branch, pools(branch) ? image : term(args_.given[branch.first], v, n));
    }
  }
}

// Second stages.
void MixedOpPasses::second_pass(const MixedOpState& state, const Norms& norms, int64_t v, int64_t n,
                                float* sums, float* memory) const {
  const StageShape s = args_.shape.next();
  float* scratch = memory + in_lines(s.map_floats());
  for (const MixedOpBranch& branch : args_.branches) {
    if (branch.stages < 2) continue;
    const int64_t at = norms.at(v, branch.norm);
    kernels_.rectify(
        {s, raw(state, v, branch.first, n), norms.scale.data() + at, norms.shift.data() + at, memory});
    float* to = raw(state, v, branch.first + 1, n);
    kernels_.separable({s, weights(branch.first + 1), memory, to}, scratch);
    if (!fixed()) kernels_.statistics(s.in(), to, sums + (branch.norm + 1) * 2 * s.padded);
  }
}

// Images' statistics [1 or V][N][M][2][padded] to those of the batch, of second stages or of all others.
void MixedOpPasses::combine(const std::vector<float>& sums, bool second, const MixedOpState& state) const {
  const int64_t padded = args_.shape.padded, c = args_.channels, stride = norms() * 2 * padded;
  const std::vector<int64_t> pixels(static_cast<size_t>(args_.images), args_.shape.out().pixels());
  Matrix mean = zeros(padded), variance = zeros(padded);
  for (const MixedOpBranch& branch : args_.branches) {
    if (branch.norm < 0 || (second && branch.stages < 2)) continue;
    const int64_t norm = branch.norm + (second ? 1 : 0);
    for (int64_t v = 0; v < args_.variants; ++v) {
      const int64_t own = variants_of(branch) > 1 ? v : 0, to = (v * norms() + norm) * c;
      combine_statistics(padded, sums.data() + own * args_.images * stride + norm * 2 * padded, stride,
                         pixels, mean.data(), variance.data());
      std::copy_n(mean.data(), c, state.mean + to);
      std::copy_n(variance.data(), c, state.variance + to);
    }
  }
}

MixedOpPasses::Norms MixedOpPasses::folded(const MixedOpState& state) const {
  const int64_t padded = args_.shape.padded, c = args_.channels, count = args_.variants * norms();
  Norms result{norms(), padded, zeros(count * padded), zeros(count * padded), zeros(count * padded)};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t norm = i % norms();
    for (int64_t j = 0; j < c; ++j) {
      const double mean = state.mean[i * c + j], spread = state.variance[i * c + j] + args_.eps[norm],
                   scale = args_.gamma[norm * c + j] / std::sqrt(spread);
      result.mean[i * padded + j] = static_cast<float>(mean);
      result.scale[i * padded + j] = static_cast<float>(scale);
      result.shift[i * padded + j] = static_cast<float>(args_.beta[norm * c + j] - scale * mean);
    }
  }
  return result;
}

const float* MixedOpPasses::image(const MixedOpState& state, const MixedOpBranch& branch, int64_t v,
                                  int64_t n, float* memory) const {
  if (branch.kind == BranchKind::skip) return x(v, n);
  if (branch.kind == BranchKind::given) return term(args_.given[branch.first], v, n);
  if (branch.kind == BranchKind::separable) return raw(state, v, branch.first + branch.stages - 1, n);
  kernels_.pool(pool(branch, x(v, n)), memory, memory + in_lines(out_floats()));
  return memory;
}

// The weighted sum of the branches' images before their last batch norms; null for `none`.
void MixedOpPasses::weighted_sum(const std::vector<const float*>& images, const Norms& norms, int64_t v,
                                 float* out) const {
  const int64_t padded = args_.shape.padded, branches = static_cast<int64_t>(args_.branches.size());
  Matrix scales = zeros(branches * padded), shift = zeros(padded);
  std::vector<Term> terms;
  for (int64_t o = 0; o < branches; ++o) {
    if (images[o] == nullptr) continue;
    const MixedOpBranch& branch = args_.branches[o];
    const float alpha = args_.alpha[v * branches + o];
    float* scale = scales.data() + o * padded;
    const int64_t at = norms.at(v, branch.norm + (branch.stages > 1 ? 1 : 0));
    for (int64_t c = 0; c < args_.channels; ++c) {
      scale[c] = branch.norm < 0 ? alpha : alpha * norms.scale[at + c];
      if (branch.norm >= 0) shift[c] += alpha * norms.shift[at + c];
    }
    terms.push_back({images[o], scale});
  }
  kernels_.weighted_sum(
      {args_.shape.out(), static_cast<int64_t>(terms.size()), terms.data(), shift.data(), out});
}

// The weighted sum of all terms.
void MixedOpPasses::third_pass(const MixedOpState& state, const Norms& norms, int64_t v, int64_t n,
                               float* out, float* memory) const {
  std::vector<const float*> images;
  images.reserve(args_.branches.size());
  for (const MixedOpBranch& branch : args_.branches) {
    images.push_back(branch.kind == BranchKind::none ? nullptr : image(state, branch, v, n, memory));
    if (pools(branch)) memory += in_lines(out_floats());
  }
  weighted_sum(images, norms, v, out);
}

// Those of the arguments to mean and variance [V][M][C].
void MixedOpPasses::given_statistics(const MixedOpState& state) const {
  const int64_t c = args_.channels, rows = (args_.per_variant ? args_.variants : 1) * norms();
  for (int64_t i = 0; i < args_.variants * norms() * c; ++i) {
    const int64_t row = i / c % rows;
    state.mean[i] = args_.statistics[row * 2 * c + i % c];
    state.variance[i] = args_.statistics[(row * 2 + 1) * c + i % c];
  }
}

void MixedOpPasses::forward(const MixedOpState& state, float* out) const {
  const int64_t images = args_.images, stride = norms() * 2 * args_.shape.padded;
  int64_t different = args_.x.variants;
  for (const MixedOpImages& some : args_.given) different = std::max(different, some.variants);
  const ScratchSpace scratch(scratch_floats());
  std::vector<float> sums = zeros(fixed() ? 0 : different * images * stride);
  const auto of = [&](int64_t unit) { return fixed() ? nullptr : sums.data() + unit * stride; };
  run(different * images, scratch, [&](int64_t unit, float* memory) {
    first_pass(state, unit / images, unit % images, of(unit), memory);
  });
  if (fixed()) {
    given_statistics(state);
  } else {
    combine(sums, false, state);
  }
  const Norms first = folded(state);
  // Every pass goes the other way than the last: what that has left in the cache comes first.
  run(args_.x.variants * images, scratch, [&](int64_t turned, float* memory) {
    const int64_t unit = args_.x.variants * images - 1 - turned;
    second_pass(state, first, unit / images, unit % images, of(unit), memory);
  });
  if (!fixed()) combine(sums, true, state);
  const Norms all = folded(state);
  run(args_.variants * images, scratch, [&](int64_t unit, float* memory) {
    third_pass(state, all, unit / images, unit % images, out + unit * out_floats(), memory);
  });
}

// A map of relu(x), images of pools and one more, and what the kernels need.
int64_t MixedOpPasses::scratch_floats() const {
  int64_t images = 1;
  for (const MixedOpBranch& branch : args_.branches) images += pools(branch) ? 1 : 0;
  return in_lines(args_.shape.map_floats()) + images * in_lines(out_floats()) +
         std::max(kernels_.scratch(args_.shape), kernels_.scratch(args_.shape.next()));
}

}  // namespace vpdarts::cpu
