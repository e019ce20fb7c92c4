// Which convolutions a masked cell needs: one per distinct (value of the source node, alphas).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/kernels/masked_cell.h"

namespace vpdarts::cpu {

// Folded convolutions of all edges, one for each distinct pair of their alphas and statistics.
class FoldedWeights {
 public:
  // alpha [variants, edges, 5]; weights, means and variances as in the schema, contiguous; own: each variant
  // has means and variances of its own.
  FoldedWeights(const MaskedCellKernels& kernels, int64_t channels, int64_t padded, int64_t edges,
                const float* conv_1x1, const float* conv_3x3, const float* mean, const float* variance,
                bool own, int64_t variants, const float* alpha, double eps);

  // The edge under variant v's alphas.
  EdgeTerm term(int64_t variant, int64_t edge) const { return terms_[variant * edges_ + edge]; }

  // The number of distinct folded convolutions; `transform` computes one, any thread any of them.
  int64_t count() const { return static_cast<int64_t>(jobs_.size()); }
  void transform(int64_t job);

 private:
  struct Job {
    int64_t edge;
    int64_t statistics;  // where its means and variances begin
    float alpha_1x1, alpha_3x3;
    float *weight, *bias;
  };

  const MaskedCellKernels& kernels_;
  int64_t channels_, padded_, edges_;
  const float *conv_1x1_, *conv_3x3_, *mean_, *variance_;
  double eps_;
  std::vector<Job> jobs_;
  std::unique_ptr<float[]> memory_;
  std::vector<EdgeTerm> terms_;
};

// The plan for an input that all variants share.
class MaskedCellPlan {
 public:
  MaskedCellPlan(const FoldedWeights& weights, int64_t nodes, int64_t variants);

  SharedPlan view() const;
  // For each variant, the number of its value of the last node.
  const std::vector<int64_t>& output() const { return output_; }
  // Convolutions of one edge in all.
  int64_t convolutions() const;

 private:
  std::vector<int64_t> values_, products_, output_;
  std::vector<std::vector<Product>> product_;
  std::vector<std::vector<Addend>> addends_;
  std::vector<const Product*> product_pointers_;
  std::vector<const Addend*> addend_pointers_;
};

}  // namespace vpdarts::cpu
