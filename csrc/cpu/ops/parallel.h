// Units of work shared out among PyTorch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

namespace vpdarts::cpu {

struct FreeMemory {
  void operator()(void* memory) const { std::free(memory); }
};

using Floats = std::unique_ptr<float, FreeMemory>;

// Memory aligned to a cache line.
inline Floats allocate(int64_t floats) {
  const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
  Floats memory(static_cast<float*>(std::aligned_alloc(64, bytes)));
  STD_TORCH_CHECK(memory != nullptr, "no memory for ", bytes, " bytes of scratch space");
  return memory;
}

// Scratch memory, one piece for each thread that may run.
class ScratchSpace {
 public:
  explicit ScratchSpace(int64_t floats) {
    const int64_t threads = torch::stable::get_num_threads();
    for (int64_t t = 0; t < threads; ++t) pieces_.push_back(allocate(floats));
  }
  int64_t threads() const { return static_cast<int64_t>(pieces_.size()); }
  float* of(int64_t thread) const { return pieces_[static_cast<size_t>(thread)].get(); }

 private:
  std::vector<Floats> pieces_;
};

// Runs work(unit, scratch) for all units; threads take the next one as they finish theirs.
template <typename Work>
void run(int64_t units, const ScratchSpace& scratch, const Work& work) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min(units, scratch.threads()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t unit; (unit = next++) < units;) work(unit, scratch.of(t));
    }
  });
}

// Runs work(unit, part, scratch), unit 0 to units-1 cut into as many parts as there are threads: what a part
// adds up depends on the number of threads only.
template <typename Work>
void run_in_parts(int64_t units, const ScratchSpace& scratch, const Work& work) {
  const int64_t parts = scratch.threads();
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t unit = part * units / parts; unit < (part + 1) * units / parts; ++unit)
        work(unit, part, scratch.of(part));
    }
  });
}

// Runs work(i) for 0 to count-1.
template <typename Work>
void run_each(int64_t count, const Work& work) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i);
  });
}

}  // namespace vpdarts::cpu
