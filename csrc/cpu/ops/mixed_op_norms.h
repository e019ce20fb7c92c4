// The batch norms of a mixed_op, folded.
#pragma once

#include "cpu/ops/mixed_op_passes.h"

namespace vpdarts::cpu {

// Every batch norm is scale raw + shift; [V][M][padded], zero where there is no channel.
struct MixedOpPasses::Norms {
  int64_t count, padded;
  Matrix mean, scale, shift;
  int64_t at(int64_t v, int64_t norm) const { return (v * count + norm) * padded; }
};

}  // namespace vpdarts::cpu
