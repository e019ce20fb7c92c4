#include "cpu/ops/masked_cell_plan.h"

#include <cmath>
#include <cstring>
#include <map>
#include <tuple>
#include <utility>

namespace vpdarts::cpu {
namespace {

// Floats compared by their bits, so that any value, NaN included, can be a key.
uint32_t bits(float value) {
  uint32_t result;
  std::memcpy(&result, &value, sizeof(result));
  return result;
}

}  // namespace

FoldedWeights::FoldedWeights(const MaskedCellKernels& kernels, int64_t channels, int64_t padded,
                             int64_t edges, const float* conv_1x1, const float* conv_3x3, const float* mean,
                             const float* variance, bool own, int64_t variants, const float* alpha,
                             double eps)
    : kernels_(kernels),
      channels_(channels),
      padded_(padded),
      edges_(edges),
      conv_1x1_(conv_1x1),
      conv_3x3_(conv_3x3),
      mean_(mean),
      variance_(variance),
      eps_(eps) {
  const int64_t row_floats = 2 * channels;
  std::map<std::vector<uint32_t>, int64_t> numbers;
  std::vector<int64_t> job_of(static_cast<size_t>(variants * edges), -1);
  for (int64_t i = 0; i < variants * edges; ++i) {
    const float* row = alpha + 5 * i;
    if (row[2] == 0 && row[3] == 0) continue;
    const int64_t statistics = (own ? i : i % edges) * row_floats;
    std::vector<uint32_t> key{static_cast<uint32_t>(i % edges), bits(row[2]), bits(row[3])};
    for (int64_t k = 0; own && k < row_floats; ++k) {
      key.push_back(bits(mean[statistics + k]));
      key.push_back(bits(variance[statistics + k]));
    }
    const auto found = numbers.emplace(std::move(key), count()).first;
    if (found->second == count()) jobs_.push_back({i % edges, statistics, row[2], row[3], nullptr, nullptr});
    job_of[i] = found->second;
  }
  const int64_t floats = kernels.weight_floats(padded);
  memory_.reset(new float[static_cast<size_t>(count() * (floats + padded))]);
  for (int64_t job = 0; job < count(); ++job) {
    jobs_[job].weight = memory_.get() + job * (floats + padded);
    jobs_[job].bias = jobs_[job].weight + floats;
  }
  for (int64_t i = 0; i < variants * edges; ++i) {
    const Job* job = job_of[i] < 0 ? nullptr : &jobs_[job_of[i]];
    terms_.push_back(
        {job ? job->weight : nullptr, job ? job->bias : nullptr, alpha[5 * i + 1], alpha[5 * i + 4]});
  }
}

// Batch norm with fixed statistics and alpha are one factor and one shift per output channel.
void FoldedWeights::transform(int64_t number) {
  const Job& job = jobs_[number];
  std::vector<float> scale_1x1(channels_), scale_3x3(channels_);
  const float *mean = mean_ + job.statistics, *variance = variance_ + job.statistics;
  for (int64_t c = 0; c < padded_; ++c) job.bias[c] = 0;
  for (int64_t c = 0; c < channels_; ++c) {
    const double a = job.alpha_1x1 / std::sqrt(variance[c] + eps_);
    const double b = job.alpha_3x3 / std::sqrt(variance[channels_ + c] + eps_);
    scale_1x1[c] = static_cast<float>(a);
    scale_3x3[c] = static_cast<float>(b);
    job.bias[c] = static_cast<float>(-a * mean[c] - b * mean[channels_ + c]);
  }
  const int64_t pairs = channels_ * channels_;
  kernels_.transform_weight(channels_, padded_, conv_1x1_ + job.edge * pairs,
                            conv_3x3_ + job.edge * pairs * 9, scale_1x1.data(), scale_3x3.data(), job.weight);
}

MaskedCellPlan::MaskedCellPlan(const FoldedWeights& weights, int64_t nodes, int64_t variants)
    : values_{1}, products_{0}, product_(1), addends_(1) {
  // of[j][v]: the number of node j's value in variant v.
  std::vector<std::vector<int64_t>> of{std::vector<int64_t>(variants, 0)};
  for (int64_t i = 1; i < nodes; ++i) {
    const int64_t first = i * (i - 1) / 2;  // the edge 0 -> i
    std::map<std::tuple<int64_t, int64_t, const float*>, int64_t> product_numbers;
    std::map<std::vector<int64_t>, int64_t> value_numbers;
    std::vector<Product> products;
    std::vector<Addend> addends;
    std::vector<int64_t> number(variants);
    for (int64_t v = 0; v < variants; ++v) {
      std::vector<int64_t> key;
      std::vector<Addend> sum;
      for (int64_t j = 0; j < i; ++j) {
        const EdgeTerm term = weights.term(v, first + j);
        const auto product_key = std::make_tuple(j, of[j][v], term.weight);
        const int64_t next = static_cast<int64_t>(products.size());
        const int64_t p = product_numbers.emplace(product_key, next).first->second;
        if (p == next) products.push_back({j, of[j][v], term});
        // The product comes with the skip and the pool of the first variant that asked for it.
        const Addend addend{p, term.skip - products[p].term.skip, term.pool - products[p].term.pool};
        sum.push_back(addend);
        key.insert(key.end(), {p, bits(term.skip), bits(term.pool)});
      }
      const int64_t next = static_cast<int64_t>(value_numbers.size());
      number[v] = value_numbers.emplace(key, next).first->second;
      if (number[v] == next) addends.insert(addends.end(), sum.begin(), sum.end());
    }
    values_.push_back(static_cast<int64_t>(value_numbers.size()));
    products_.push_back(static_cast<int64_t>(products.size()));
    product_.push_back(std::move(products));
    addends_.push_back(std::move(addends));
    of.push_back(std::move(number));
  }
  output_ = of.back();
  for (const auto& products : product_) product_pointers_.push_back(products.data());
  for (const auto& addends : addends_) addend_pointers_.push_back(addends.data());
}

SharedPlan MaskedCellPlan::view() const {
  return {static_cast<int64_t>(values_.size()), values_.data(), products_.data(), product_pointers_.data(),
          addend_pointers_.data()};
}

int64_t MaskedCellPlan::convolutions() const {
  int64_t total = 0;
  for (int64_t products : products_) total += products;
  return total;
}

}  // namespace vpdarts::cpu
