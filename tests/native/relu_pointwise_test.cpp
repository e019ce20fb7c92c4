// The kernels of relu_pointwise against the textbook in double precision, without PyTorch, so that they can
// run under sanitizers. Every buffer has exactly the size that the interface asks for and holds NaN before it
// is written. Exit status 0 if all is well.
#include "cpu/kernels/relu_pointwise.h"

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cpu/ops/parallel.h"

using namespace vpdarts::cpu;

namespace {

const ReluPointwiseKernels& kKernels = VPDARTS_ISA::relu_pointwise_kernels();

using Values = std::vector<float>;
using Map = std::vector<double>;

std::mt19937 random_bits(0);
int failures = 0;

Values unwritten(int64_t count) { return Values(static_cast<size_t>(count), NAN); }

Floats scratch_of(const PointwiseShape& s) {
  const int64_t floats = kKernels.scratch(s);
  Floats memory = allocate(floats);
  for (int64_t i = 0; i < floats; ++i) memory.get()[i] = NAN;
  return memory;
}

// [pixels][padded], the padding 0.
Values normal(int64_t pixels, int64_t channels, int64_t padded) {
  std::normal_distribution<float> draw(0, 1);
  Values values(static_cast<size_t>(pixels * padded));
  for (int64_t i = 0; i < pixels * padded; ++i)
    if (i % padded < channels) values[i] = draw(random_bits);
  return values;
}

void check(const PointwiseShape& s, const char* what, const Values& got, const Map& expected) {
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::fabs(got[i] - expected[i]);
    worst = std::isfinite(error) ? std::fmax(worst, error) : INFINITY;
    largest = std::fmax(largest, std::fabs(expected[i]));
  }
  if (got.size() == expected.size() && worst < 2e-5 * largest) return;
  ++failures;
  std::printf("size %ldx%ld channels %ld stride %ld to %ld and %ld: %s: error %g\n", long(s.height),
              long(s.width), long(s.channels), long(s.stride), long(s.first[1]), long(s.first[2]), what,
              worst / largest);
}

void test(PointwiseShape s) {
  const auto padded = [](int64_t c) { return (c + kKernels.lanes - 1) / kKernels.lanes * kKernels.lanes; };
  const int64_t out_channels = s.first[s.count];
  s.padded = padded(s.channels);
  s.out_padded = padded(out_channels);
  const Values x = normal(s.in().pixels(), s.channels, s.padded),
               gradient = normal(s.out().pixels(), out_channels, s.out_padded);
  std::vector<Values> weights;
  std::vector<const float*> pointers;
  for (int64_t i = 0; i < s.count; ++i)
    weights.push_back(normal(s.first[i + 1] - s.first[i], s.channels, s.channels));
  for (const Values& weight : weights) pointers.push_back(weight.data());

  Values packed = unwritten(s.count * s.padded * s.out_padded),
         transposed = unwritten(out_channels * s.padded);
  kKernels.pack(s, pointers.data(), packed.data());
  kKernels.pack_transposed(s, pointers.data(), transposed.data());
  Values raw = unwritten(s.out().floats()), x_gradient = unwritten(s.in().floats()),
         sums(static_cast<size_t>(s.count * s.out_padded * s.padded));
  kKernels.forward({s, x.data(), packed.data(), raw.data()}, scratch_of(s).get());
  const ReluPointwiseBackward backward{s, x.data(), gradient.data(), transposed.data(), nullptr, sums.data()};
  kKernels.backward(backward, scratch_of(s).get());
  const Values of_weights = sums;
  kKernels.backward({s, x.data(), gradient.data(), transposed.data(), x_gradient.data(), sums.data()},
                    scratch_of(s).get());

  Map of_raw(raw.size()), of_x(x.size()), of_sums(sums.size());
  for (int64_t i = 0; i < s.count; ++i)
    for (int64_t p = 0; p < s.out().pixels(); ++p) {
      const int64_t y = s.stride * (p / s.out_width()) + i, column = s.stride * (p % s.out_width()) + i;
      if (y >= s.height || column >= s.width) continue;
      const int64_t from = (y * s.width + column) * s.padded;
      for (int64_t out = s.first[i]; out < s.first[i + 1]; ++out)
        for (int64_t in = 0; in < s.channels; ++in) {
          const double w = weights[i][(out - s.first[i]) * s.channels + in],
                       r = std::fmax(x[from + in], 0.0f);
          const double g = gradient[p * s.out_padded + out];
          of_raw[p * s.out_padded + out] += w * r;
          of_x[from + in] += x[from + in] > 0 ? w * g : 0;
          of_sums[(i * s.out_padded + out) * s.padded + in] += g * r;
        }
    }
  check(s, "output", raw, of_raw);
  check(s, "gradient of x", x_gradient, of_x);
  // Of a convolution's own channels; what is added to others nobody reads.
  Values once(sums.size()), twice(sums.size());
  for (int64_t i = 0; i < s.count; ++i)
    for (int64_t at = s.first[i] * s.padded; at < s.first[i + 1] * s.padded; ++at) {
      const int64_t place = i * s.out_padded * s.padded + at;
      once[place] = of_weights[place];
      twice[place] = sums[place] - of_weights[place];
    }
  check(s, "gradient of the weights", once, of_sums);
  check(s, "gradient of the weights, added to others", twice, of_sums);
}

}  // namespace

int main() {
  for (const int64_t channels : {1, 3, 16, 40})
    for (const auto& [first, second] : {std::pair<int64_t, int64_t>{1, 2}, {3, 14}, {16, 16}, {40, 7}})
      for (const auto& [height, width] : {std::pair<int64_t, int64_t>{1, 1}, {5, 7}, {8, 6}, {1, 9}}) {
        test({height, width, channels, 0, 1, 0, 1, {0, first, first}});
        test({height, width, channels, 0, 2, 0, 1, {0, second, second}});
        test({height, width, channels, 0, 2, 0, 2, {0, first, first + second}});
      }
  test({70, 65, 16, 0, 1, 0, 1, {0, 5, 5}});  // several chunks of rows
  test({70, 65, 16, 0, 2, 0, 2, {0, 5, 9}});
  std::printf("%d failed\n", failures);
  return failures == 0 ? 0 : 1;
}
