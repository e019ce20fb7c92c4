// Stands in for PyTorch's header of this name where a test is built without PyTorch: three threads' pieces,
// one after the other.
#pragma once

#include <algorithm>
#include <cstdint>

namespace torch::stable {

inline uint32_t get_num_threads() { return 3; }

template <typename Work>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Work& work) {
  const int64_t piece = std::max(grain, (end - begin + get_num_threads() - 1) / get_num_threads());
  for (; begin < end; begin += piece) work(begin, std::min(end, begin + piece));
}

}  // namespace torch::stable
