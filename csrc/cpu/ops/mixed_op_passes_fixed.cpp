// mixed_op with given statistics, where no backward pass follows: everything of an image in one pass.
#include <algorithm>

#include "cpu/ops/mixed_op_norms.h"
#include "cpu/ops/mixed_op_passes.h"
#include "cpu/ops/parallel.h"

namespace vpdarts::cpu {

// A branch's term before its last batch norm: memory that is there, or `memory` filled in, which has room for
// a map and the kernels' scratch memory behind it. `map`: of relu(x).
const float* MixedOpPasses::fixed_image(const MixedOpBranch& branch, const Norms& norms, int64_t v, int64_t n,
                                        const float* map, float* memory) const {
  if (branch.kind == BranchKind::none) return nullptr;
  if (branch.kind == BranchKind::skip) return x(v, n);
  if (branch.kind == BranchKind::given) return term(args_.given[branch.first], v, n);
  float *inner = memory + in_lines(out_floats()),
        *scratch = inner + in_lines(args_.shape.next().map_floats());
  if (pools(branch)) {
    kernels_.pool(pool(branch, x(v, n)), memory, scratch);
    return memory;
  }
  kernels_.separable({args_.shape, weights(branch.first), map, memory}, scratch);
  if (branch.stages > 1) {
    const int64_t at = norms.at(v, branch.norm);
    kernels_.rectify({args_.shape.next(), memory, norms.scale.data() + at, norms.shift.data() + at, inner});
    kernels_.separable({args_.shape.next(), weights(branch.first + 1), inner, memory}, scratch);
  }
  return memory;
}

void MixedOpPasses::forward_fixed(float* out) const {
  Matrix mean = zeros(args_.variants * norms() * args_.channels), variance = mean;
  const MixedOpState state{nullptr, mean.data(), variance.data()};
  given_statistics(state);
  const Norms all = folded(state);
  int64_t different = args_.x.variants;
  for (const MixedOpImages& some : args_.given) different = std::max(different, some.variants);
  const StageShape& s = args_.shape;
  const bool separable = !args_.stages.empty();
  const int64_t image = in_lines(out_floats()), branches = static_cast<int64_t>(args_.branches.size()),
                images = args_.images;
  const ScratchSpace scratch(in_lines(s.map_floats()) + branches * image + in_lines(s.next().map_floats()) +
                             std::max(kernels_.scratch(s), kernels_.scratch(s.next())));
  run(different * images, scratch, [&](int64_t unit, float* memory) {
    const int64_t first = unit / images, n = unit % images;
    const float* map = memory;
    if (separable) kernels_.rectify({s, x(first, n), nullptr, nullptr, memory});
    memory += in_lines(s.map_floats());
    std::vector<const float*> terms;
    terms.reserve(args_.branches.size());
    for (const MixedOpBranch& branch : args_.branches) {
      terms.push_back(fixed_image(branch, all, first, n, map, memory));
      if (terms.back() == memory) memory += image;
    }
    // All variants that have these terms.
    for (int64_t v = first; v < (different > 1 ? first + 1 : args_.variants); ++v)
      weighted_sum(terms, all, v, out + (v * images + n) * out_floats());
  });
}

}  // namespace vpdarts::cpu
