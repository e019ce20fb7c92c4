// A batch cut into blocks of images.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/kernels/block.h"

namespace vpdarts::cpu {

// Enough tiles in a block to reuse a weight that has come into the cache, not more than the cache holds, and
// work for every thread. The sums of a block do not depend on the threads.
class Blocks {
 public:
  explicit Blocks(const Block& batch) : batch_(batch) {
    const int64_t tiles = ((batch.height + 3) / 4) * ((batch.width + 3) / 4);
    images_ = std::clamp<int64_t>(std::max<int64_t>(32, batch.padded) / tiles, 1,
                                  std::max<int64_t>(1, batch.images / 4));
  }
  int64_t count() const { return (batch_.images + images_ - 1) / images_; }
  Block operator[](int64_t b) const {
    return {std::min(images_, batch_.images - first(b)), batch_.height, batch_.width, batch_.padded};
  }
  // The first image, pixel and float of block b.
  int64_t first(int64_t b) const { return b * images_; }
  int64_t first_pixel(int64_t b) const { return first(b) * batch_.height * batch_.width; }
  int64_t offset(int64_t b) const { return first_pixel(b) * batch_.padded; }
  std::vector<int64_t> pixels() const {
    std::vector<int64_t> result;
    for (int64_t b = 0; b < count(); ++b) result.push_back((*this)[b].pixels());
    return result;
  }

  // Every pass over the batch goes the other way than the last: what that has left in the cache comes first.
  int64_t turned(int64_t b, int64_t pass) const { return pass % 2 == 0 ? b : count() - 1 - b; }

 private:
  Block batch_;
  int64_t images_;
};

}  // namespace vpdarts::cpu
