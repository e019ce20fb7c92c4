// The kernels of the instruction set in use.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/kernels/masked_cell.h"

namespace vpdarts::cpu {

struct Kernels {
  const MaskedCellKernels& masked_cell;
};

// Of active_isa().
const Kernels& active_kernels();

}  // namespace vpdarts::cpu
