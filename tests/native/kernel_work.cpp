// One call each of what a search spends its time in, without PyTorch: a tool that counts instructions counts
// those of the functions whose names begin with `work_` (tests/support/work_counts.py).
#include <cmath>
#include <cstdio>
#include <vector>

#include "cpu/kernels/masked_cell.h"
#include "cpu/kernels/relu_pointwise.h"
#include "cpu/kernels/residual_block.h"
#include "cpu/ops/masked_cell_plan.h"
#include "cpu/ops/mixed_cell_passes.h"
#include "cpu/ops/mixed_op_passes.h"
#include "cpu/ops/parallel.h"
#include "cpu/ops/trained_residual_block_passes.h"

using namespace vpdarts::cpu;

namespace {

constexpr int64_t kNodes = 4, kEdges = 6, kImages = 4, kChannels = 16, kSize = 8, kVariants = 4;
constexpr double kEps = 1e-5;
constexpr int64_t kFloats = kImages * kSize * kSize * kChannels;  // of a node; no lane count pads 16 channels

// Values between -1 and 1, the same on every machine.
std::vector<float> values(int64_t count, float scale = 1) {
  std::vector<float> result(static_cast<size_t>(count));
  uint32_t bits = 1;
  for (float& value : result) {
    bits = bits * 1664525u + 1013904223u;
    value = scale * (static_cast<float>(bits >> 8) / 8388608.0f - 1);
  }
  return result;
}

// Memory aligned as the kernels ask for it.
struct Memory {
  std::vector<Floats> pieces;
  float* take(int64_t floats) {
    pieces.push_back(allocate(floats));
    return pieces.back().get();
  }
};

}  // namespace

// Called after each function whose name begins with `work_`: here its count is complete.
extern "C" __attribute__((noinline)) void counted() { asm volatile("" ::: "memory"); }

// What is counted has a name without C++, is called, not inlined, and returns: its last call is no jump.
#define WORK extern "C" __attribute__((noinline)) void
#define DONE asm volatile("" ::: "memory")

WORK work_mixed_cell_forward(const MixedCellPasses& cell, const ValuePlan& plan, MixedCellState& state) {
  cell.forward(plan, state);
  DONE;
}

WORK work_mixed_cell_backward(const MixedCellPasses& cell, const float* alpha, const MixedCellState& state,
                              const float* gradient, const MixedCellGradients& wanted) {
  cell.backward(alpha, state, gradient, wanted);
  DONE;
}

WORK work_masked_cell(const MaskedCellKernels& kernels, const BlockShape& shape, const SharedPlan& plan,
                      ConstImageView x, const ImageView* out, float* scratch) {
  kernels.shared(shape, plan, x, out, scratch);
  DONE;
}

WORK work_mixed_op_forward(const MixedOpPasses& edge, const MixedOpState& state, float* out) {
  edge.forward(state, out);
  DONE;
}

WORK work_mixed_op_fixed(const MixedOpPasses& edge, float* out) {
  edge.forward_fixed(out);
  DONE;
}

WORK work_mixed_op_backward(const MixedOpPasses& edge, const MixedOpState& state, const float* gradient,
                            const MixedOpGradients& wanted) {
  edge.backward(state, gradient, wanted);
  DONE;
}

WORK work_relu_pointwise_forward(const ReluPointwiseKernels& kernels, const ReluPointwiseForward& args,
                                 float* scratch) {
  kernels.forward(args, scratch);
  DONE;
}

WORK work_relu_pointwise_backward(const ReluPointwiseKernels& kernels, const ReluPointwiseBackward& args,
                                  float* scratch) {
  kernels.backward(args, scratch);
  DONE;
}

WORK work_trained_residual_block_forward(const TrainedResidualBlockPasses& block, const float* x,
                                         const TrainedResidualBlockState& state, float* out) {
  block.forward(x, state, out);
  DONE;
}

WORK work_trained_residual_block_backward(const TrainedResidualBlockPasses& block, const float* x,
                                          const TrainedResidualBlockState& state, const float* gradient,
                                          const TrainedResidualBlockGradients& wanted) {
  block.backward(x, state, gradient, wanted);
  DONE;
}

WORK work_residual_block(const ResidualBlockKernels& kernels, const ResidualShape& shape, const float* folded,
                         ConstImageView x, float* out, float* scratch) {
  kernels.forward(shape, folded, x, out, scratch);
  DONE;
}

namespace {

const auto kX = values(kFloats);
const auto kWeights = values(2 * kEdges * kChannels * kChannels * 9, 0.1f);
const auto kAlpha = values(kVariants * kEdges * 5);

void mixed_cell() {
  Memory memory;
  const MixedCellSizes sizes{kNodes, kImages, kSize, kSize, kChannels, kChannels};
  std::vector<float> x = kX;
  ValuePlan plan{{NodeValue{}}};
  MixedCellState state;
  state.node.push_back({x.data()});
  for (int64_t i = 1; i < kNodes; ++i) {
    plan.push_back({NodeValue{std::vector<int64_t>(static_cast<size_t>(i), 0), &kAlpha[5 * edge_of(0, i)]}});
    state.node.push_back({memory.take(kFloats)});
  }
  for (int64_t e = 0; e < kEdges; ++e) state.raw.push_back({memory.take(kFloats)});
  const std::vector<Dropout> keep(kEdges, Dropout{1, 2, 3u << 30, true});
  const MixedCellPasses cell(VPDARTS_ISA::relu_conv_kernels(), VPDARTS_ISA::mixed_cell_kernels(), sizes,
                             kWeights.data(), kWeights.data(), keep, kEps, false);
  work_mixed_cell_forward(cell, plan, state);
  counted();
  const int64_t pairs = kEdges * kChannels * kChannels;
  const MixedCellGradients wanted{memory.take(kFloats), memory.take(pairs), memory.take(9 * pairs),
                                  memory.take(5 * kEdges)};
  work_mixed_cell_backward(cell, kAlpha.data(), state, kX.data(), wanted);
  counted();
}

void masked_cell() {
  Memory memory;
  const MaskedCellKernels& kernels = VPDARTS_ISA::masked_cell_kernels();
  std::vector<float> alpha;
  for (int64_t v = 0; v < kVariants; ++v) {  // one op left out of each but the first
    alpha.insert(alpha.end(), kAlpha.begin(), kAlpha.begin() + 5 * kEdges);
    if (v > 0) alpha[static_cast<size_t>(5 * kEdges * v + 7 * v)] = 0;
  }
  const std::vector<float> mean(2 * kEdges * kChannels, 0.1f), variance(2 * kEdges * kChannels, 1.0f);
  FoldedWeights weights(kernels, kChannels, kChannels, kEdges, kWeights.data(), kWeights.data(), mean.data(),
                        variance.data(), false, kVariants, alpha.data(), kEps);
  for (int64_t job = 0; job < weights.count(); ++job) weights.transform(job);
  const MaskedCellPlan plan(weights, kNodes, kVariants);
  const SharedPlan view = plan.view();
  const BlockShape shape{kImages, kSize, kSize, kChannels, kChannels};
  constexpr int64_t row = kSize * kChannels;
  std::vector<ImageView> outs;
  for (int64_t u = 0; u < view.values[kNodes - 1]; ++u)
    outs.push_back({memory.take(kFloats), kSize * row, row, kChannels, 1});
  const ConstImageView x{kX.data(), kSize * row, row, kChannels, 1};
  work_masked_cell(kernels, shape, view, x, outs.data(), memory.take(kernels.shared_scratch(shape, view)));
  counted();
}

void mixed_op() {
  Memory memory;
  MixedOpArguments args{};
  args.shape = {kSize, kSize, 1, kChannels, 4};  // a border for 5x5, dilated
  args.variants = 1;
  args.images = kImages;
  args.channels = kChannels;
  args.x = {kX.data(), 1};
  args.alpha = kAlpha.data();
  // The DARTS space at stride 1: two pools, skip, two separable and two dilated convolutions.
  args.branches = {{BranchKind::none, -1, 0, 0},        {BranchKind::maximum_pool, 0, 0, 0},
                   {BranchKind::average_pool, 1, 0, 0}, {BranchKind::skip, -1, 0, 0},
                   {BranchKind::separable, 2, 0, 2},    {BranchKind::separable, 4, 2, 2},
                   {BranchKind::separable, 6, 4, 1},    {BranchKind::separable, 7, 5, 1}};
  const float* weights = kWeights.data();
  args.stages = {{3, 1, weights, weights}, {3, 1, weights, weights}, {5, 1, weights, weights},
                 {5, 1, weights, weights}, {3, 2, weights, weights}, {5, 2, weights, weights}};
  args.eps.assign(8, kEps);
  const std::vector<float> gamma(8 * kChannels, 1.0f), beta(8 * kChannels, 0.0f);
  args.gamma = gamma.data();
  args.beta = beta.data();
  const auto stages = static_cast<int64_t>(args.stages.size());
  const MixedOpPasses edge(VPDARTS_ISA::mixed_op_kernels(), args);
  const MixedOpState state{memory.take(stages * kFloats), memory.take(8 * kChannels),
                           memory.take(8 * kChannels)};
  work_mixed_op_forward(edge, state, memory.take(kFloats));
  counted();
  MixedOpGradients wanted{memory.take(kFloats), memory.take(8), {}, {}, {}, nullptr, nullptr};
  for (const MixedOpStage& stage : args.stages) {
    wanted.depthwise.push_back(memory.take(kChannels * stage.kernel * stage.kernel));
    wanted.pointwise.push_back(memory.take(kChannels * kChannels));
  }
  work_mixed_op_backward(edge, state, kX.data(), wanted);
  counted();
  const std::vector<float> statistics(16 * kChannels, 1.0f);
  args.statistics = statistics.data();
  const MixedOpPasses fixed(VPDARTS_ISA::mixed_op_kernels(), args);
  work_mixed_op_fixed(fixed, memory.take(kFloats));
  counted();
}

// From 16 to 32 channels.
constexpr int64_t kWide = 2 * kChannels;
const ResidualShape kBlock{kImages, kSize, kSize, kChannels, kChannels, kWide};

// A factorised reduce, of one image.
void relu_pointwise() {
  Memory memory;
  const ReluPointwiseKernels& kernels = VPDARTS_ISA::relu_pointwise_kernels();
  const PointwiseShape shape{kSize, kSize,     kChannels, kChannels,
                             2,     kChannels, 2,         {0, kChannels / 2, kChannels}};
  const float* const weights[2] = {kWeights.data(), kWeights.data()};
  constexpr int64_t square = kChannels * kChannels;
  float *packed = memory.take(2 * square), *transposed = memory.take(square);
  kernels.pack(shape, weights, packed);
  kernels.pack_transposed(shape, weights, transposed);
  float* scratch = memory.take(kernels.scratch(shape));
  work_relu_pointwise_forward(kernels, {shape, kX.data(), packed, memory.take(shape.out().floats())},
                              scratch);
  counted();
  std::vector<float> sums(2 * square);
  work_relu_pointwise_backward(
      kernels, {shape, kX.data(), kX.data(), transposed, memory.take(shape.in().floats()), sums.data()},
      scratch);
  counted();
}

void trained_residual_block() {
  Memory memory;
  const auto weights_a = values(kWide * kChannels * 9, 0.1f), weights_b = values(kWide * kWide * 9, 0.1f),
             shortcut = values(kWide * kChannels, 0.1f), gradient = values(kBlock.out().floats());
  const std::vector<float> gamma(2 * kWide, 1.0f), beta(2 * kWide, 0.0f);
  const TrainedResidualBlockWeights weights{weights_a.data(), weights_b.data(), shortcut.data(), gamma.data(),
                                            beta.data()};
  const TrainedResidualBlockPasses block(VPDARTS_ISA::trained_residual_block_kernels(),
                                         VPDARTS_ISA::relu_conv_kernels(), kBlock, kWide, weights, kEps);
  const int64_t floats = kBlock.out().floats();
  const TrainedResidualBlockState state{memory.take(floats), memory.take(floats), memory.take(2 * kWide),
                                        memory.take(2 * kWide)};
  work_trained_residual_block_forward(block, kX.data(), state, memory.take(floats));
  counted();
  const TrainedResidualBlockGradients wanted{
      memory.take(kFloats),           memory.take(kWide * kChannels * 9),
      memory.take(kWide * kWide * 9), memory.take(kWide * kChannels),
      memory.take(2 * kWide),         memory.take(2 * kWide)};
  work_trained_residual_block_backward(block, kX.data(), state, gradient.data(), wanted);
  counted();
}

void residual_block() {
  Memory memory;
  const ResidualBlockKernels& kernels = VPDARTS_ISA::residual_block_kernels();
  const auto weights_a = values(kWide * kChannels * 9, 0.1f), weights_b = values(kWide * kWide * 9, 0.1f),
             shortcut = values(kWide * kChannels, 0.1f);
  const std::vector<float> scale(2 * kWide, 1.0f), shift(2 * kWide, 0.0f);
  float* folded = memory.take(kernels.weight_floats(kChannels, kWide));
  kernels.fold(kChannels, kWide, kChannels, kWide,
               {weights_a.data(), weights_b.data(), shortcut.data(), scale.data(), shift.data()}, folded);
  constexpr int64_t row = kSize * kChannels;
  work_residual_block(kernels, kBlock, folded, {kX.data(), kSize * row, row, kChannels, 1},
                      memory.take(kBlock.out().floats()), memory.take(kernels.scratch(kBlock)));
  counted();
}

}  // namespace

int main() {
  mixed_cell();
  masked_cell();
  mixed_op();
  relu_pointwise();
  trained_residual_block();
  residual_block();
  std::puts("worked");
  return 0;
}
