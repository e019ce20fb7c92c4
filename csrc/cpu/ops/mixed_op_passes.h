// One edge's candidate operations over plain memory: which kernel runs on what, forward and backward.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels/mixed_op.h"
#include "cpu/ops/batch_norm.h"

namespace vpdarts::cpu {

enum class BranchKind : int64_t { none, skip, average_pool, maximum_pool, separable, given };

struct MixedOpBranch {
  BranchKind kind;
  int64_t norm;   // its first batch norm, -1 if it has none
  int64_t first;  // its first stage, or its given term
  int64_t stages;
};

// A stage of a separable convolution: depthwise [C, 1, k, k], pointwise [C, C, 1, 1].
struct MixedOpStage {
  int64_t kernel, dilation;
  const float *depthwise, *pointwise;
};

// Images [1 or V][N] of the output's size.
struct MixedOpImages {
  const float* data;
  int64_t variants;
};

// Images NHWC, channels padded with zeros; the shape is that of x and of the first stages.
struct MixedOpArguments {
  StageShape shape;
  int64_t variants, images, channels;
  MixedOpImages x;
  const float* alpha;  // [V][O]
  std::vector<MixedOpBranch> branches;
  std::vector<MixedOpStage> stages;
  std::vector<MixedOpImages> given;
  std::vector<double> eps;    // [M]
  const float *gamma, *beta;  // [M][C]
  const float* statistics;    // [M][2][C], or [V][M][2][C], or null for the batch's own
  bool per_variant;           // statistics are
};

// What a forward pass leaves behind.
struct MixedOpState {
  float* raw;              // [1 or V as x][stages][N], images of the output's size
  float *mean, *variance;  // [V][M][C]
};

// Null where nobody wants it; those of the weights together, and those of gamma and beta.
struct MixedOpGradients {
  float *x, *alpha;
  std::vector<float*> depthwise, pointwise;  // [stages]
  std::vector<float*> given;                 // [given]
  float *gamma, *beta;
};

// Rounded up to whole cache lines.
inline int64_t in_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

class MixedOpPasses {
 public:
  MixedOpPasses(const MixedOpKernels& kernels, const MixedOpArguments& args);

  // state points to memory that is filled in; out [V][N].
  void forward(const MixedOpState& state, float* out) const;

  // The same with given statistics, image by image in one pass; nothing is left behind.
  void forward_fixed(float* out) const;

  // gradient [V][N] of out. x and given terms have V variants.
  void backward(const MixedOpState& state, const float* gradient, const MixedOpGradients& wanted) const;

 private:
  struct Norms;
  struct Backward;

  bool fixed() const { return args_.statistics != nullptr; }
  int64_t norms() const { return static_cast<int64_t>(args_.eps.size()); }
  int64_t out_floats() const { return args_.shape.out().floats(); }
  StageShape shape(int64_t stage_of_branch) const {
    return stage_of_branch == 0 ? args_.shape : args_.shape.next();
  }
  SeparableWeights weights(int64_t stage) const;
  const float* x(int64_t v, int64_t n) const {
    return args_.x.data + ((args_.x.variants > 1 ? v : 0) * args_.images + n) * args_.shape.in().floats();
  }
  const float* term(const MixedOpImages& some, int64_t v, int64_t n) const {
    return some.data + ((some.variants > 1 ? v : 0) * args_.images + n) * out_floats();
  }
  float* raw(const MixedOpState& state, int64_t v, int64_t stage, int64_t n) const {
    const auto stages = static_cast<int64_t>(args_.stages.size());
    return state.raw + (((args_.x.variants > 1 ? v : 0) * stages + stage) * args_.images + n) * out_floats();
  }
  static bool pools(const MixedOpBranch& branch) {
    return branch.kind == BranchKind::average_pool || branch.kind == BranchKind::maximum_pool;
  }
  Pool pool(const MixedOpBranch& branch, const float* x) const {
    return {args_.shape, branch.kind == BranchKind::maximum_pool, x};
  }
  // A branch's term before its last batch norm; a pool's is written to `memory`,
  // which has room for scratch memory behind it.
  const float* image(const MixedOpState& state, const MixedOpBranch& branch, int64_t v, int64_t n,
                     float* memory) const;
  // Variants that a branch's raw outputs have.
  int64_t variants_of(const MixedOpBranch& branch) const {
    return branch.kind == BranchKind::given ? args_.given[branch.first].variants : args_.x.variants;
  }

  void first_pass(const MixedOpState& state, int64_t v, int64_t n, float* sums, float* memory) const;
  void second_pass(const MixedOpState& state, const Norms& norms, int64_t v, int64_t n, float* sums,
                   float* memory) const;
  int64_t scratch_floats() const;
  void given_statistics(const MixedOpState& state) const;
  void combine(const std::vector<float>& sums, bool second, const MixedOpState& state) const;
  Norms folded(const MixedOpState& state) const;
  void third_pass(const MixedOpState& state, const Norms& norms, int64_t v, int64_t n, float* out,
                  float* memory) const;
  void weighted_sum(const std::vector<const float*>& images, const Norms& norms, int64_t v, float* out) const;
  const float* fixed_image(const MixedOpBranch& branch, const Norms& norms, int64_t v, int64_t n,
                           const float* map, float* memory) const;

  NormalisedGradient norm_gradient(const Backward& b, int64_t v, int64_t norm, double alpha,
                                   const double* g_sum, const double* raw_sum) const;
  static RawGradient raw_gradient(const NormalisedGradient& norm, const float* node, const float* raw) {
    return {node, raw, norm.node_scale.data(), norm.raw_scale.data(), norm.shift.data()};
  }
  float* inner_gradient(const Backward& b, int64_t v, int64_t inner, int64_t n) const;
  void reduce(Backward& b) const;
  void differentiate_stage(Backward& b, int64_t part, int64_t stage, const StageShape& s, const float* map,
                           const RawGradient& raw, float* gradient, float* scratch) const;
  void differentiate_second(Backward& b) const;
  void differentiate_first(Backward& b, int64_t part, int64_t v, int64_t n, float* map) const;
  void write_weights(const Backward& b) const;

  const MixedOpKernels& kernels_;
  MixedOpArguments args_;
  std::vector<Matrix> packed_;  // weights of every stage
};

}  // namespace vpdarts::cpu
