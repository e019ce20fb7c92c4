// A cell of mixed operations with the statistics of the batch, over plain memory: which kernels run on what,
// and the batch norms' small algebra between them.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cpu/kernels/mixed_cell.h"
#include "cpu/kernels/relu_conv.h"
#include "cpu/ops/batch_norm.h"
#include "cpu/ops/parallel.h"

namespace vpdarts::cpu {

// Every node feeds every later one: edge (source -> target) is number target * (target - 1) / 2 + source.
inline int64_t edge_of(int64_t source, int64_t target) { return target * (target - 1) / 2 + source; }

struct MixedCellSizes {
  int64_t nodes, images, height, width, channels, padded;
  int64_t edges() const { return edge_of(0, nodes); }
  int64_t pixels() const { return images * height * width; }
  int64_t node_floats() const { return pixels() * padded; }
};

// One of the values that a node takes, of those that the variants have of it.
struct NodeValue {
  std::vector<int64_t> source;  // for each node before it, which of its values
  const float* alpha;           // [incoming edges][5]
};

// values[i]: of node i. The first node's values are given; theirs are empty records.
using ValuePlan = std::vector<std::vector<NodeValue>>;

// What a pass leaves behind of every node value and of every edge's raw output, by source value.
struct MixedCellState {
  std::vector<std::vector<float*>> node;      // [node][value]
  std::vector<std::vector<float*>> raw;       // [edge][source value]
  std::vector<std::vector<Moments>> moments;  // [node but the last][value]
  // [edge][source value]: mean and variance of the 1x1, then of the 3x3 convolution, [2][2][padded].
  std::vector<std::vector<std::vector<float>>> statistics;
};

struct MixedCellGradients {
  float* x;           // like a node; null if not wanted
  float* weight_1x1;  // [E, C, C]; null if no weight gradient is wanted
  float* weight_3x3;  // [E, C, C, 3, 3]
  float* alpha;       // [E, 5]; null if not wanted
};

class MixedCellPasses {
 public:
  // weight_1x1 [E, C, C], weight_3x3 [E, C, C, 3, 3]; keep [E], or empty without dropout. skip_zeros: what
  // has alpha 0 is not computed; its statistics are 0, and so are its weights' gradients.
  MixedCellPasses(const ReluConvKernels& relu_conv, const MixedCellKernels& mixed_cell,
                  const MixedCellSizes& sizes, const float* weight_1x1, const float* weight_3x3,
                  std::vector<Dropout> keep, double eps, bool skip_zeros);

  // state.node and state.raw point to memory; state.node[0] holds the input. Fills in all the rest.
  void forward(const ValuePlan& plan, MixedCellState& state) const;

  // Of a state with one value of each node. gradient: of the last node.
  void backward(const float* alpha, const MixedCellState& state, const float* gradient,
                const MixedCellGradients& wanted) const;

 private:
  class ForwardPass;
  class BackwardPass;
  bool computes(float alpha) const { return !skip_zeros_ || alpha != 0; }
  Dropout keep(int64_t edge) const { return keep_.empty() ? Dropout{} : keep_[edge]; }
  // What the kept elements of a skip connection are multiplied with.
  float kept_scale(int64_t edge) const;
  // op 0 or 1: the edge's 1x1 or 3x3 convolution; statistics as in MixedCellState.
  Normalised normalised(int64_t op, float alpha, const std::vector<float>& statistics) const;
  // Of every edge whose convolution is needed, [E][weight_floats]; transposed for the backward pass.
  Floats transform_weights(bool transposed, const std::function<bool(int64_t edge)>& needed) const;

  const ReluConvKernels& relu_conv_;
  const MixedCellKernels& mixed_cell_;
  MixedCellSizes sizes_;
  const float* weight_3x3_;
  std::vector<std::vector<float>> matrix_1x1_;  // [E], padded
  std::vector<Dropout> keep_;
  double eps_;
  bool skip_zeros_;
};

}  // namespace vpdarts::cpu
