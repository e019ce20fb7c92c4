#include "cpu/kernels.h"

namespace vpdarts::cpu {

const Kernels& active_kernels(int64_t channels) {
#if defined(__x86_64__)
  static const Kernels avx512_kernels{avx512::gather_kernels(),
                                      avx512::relu_conv_kernels(),
                                      avx512::mixed_cell_kernels(),
                                      avx512::mixed_sum_kernels(),
                                      avx512::masked_cell_kernels(),
                                      avx512::residual_block_kernels(),
                                      avx512::trained_residual_block_kernels(),
                                      avx512::mixed_op_kernels()};
  static const Kernels avx2_kernels{avx2::gather_kernels(),
                                    avx2::relu_conv_kernels(),
                                    avx2::mixed_cell_kernels(),
                                    avx2::mixed_sum_kernels(),
                                    avx2::masked_cell_kernels(),
                                    avx2::residual_block_kernels(),
                                    avx2::trained_residual_block_kernels(),
                                    avx2::mixed_op_kernels()};
  // Only mixed_op is compiled for four lanes with FMA, too.
  static const Kernels narrow_kernels{avx2::gather_kernels(),
                                      avx2::relu_conv_kernels(),
                                      avx2::mixed_cell_kernels(),
                                      avx2::mixed_sum_kernels(),
                                      avx2::masked_cell_kernels(),
                                      avx2::residual_block_kernels(),
                                      avx2::trained_residual_block_kernels(),
                                      avx2_narrow::mixed_op_kernels()};
  if (active_isa() != Isa::baseline) {
    if (channels <= narrow_kernels.mixed_op.lanes) return narrow_kernels;
    if (channels <= avx2_kernels.mixed_op.lanes) return avx2_kernels;
  }
#endif
  static const Kernels baseline_kernels{baseline::gather_kernels(),
                                        baseline::relu_conv_kernels(),
                                        baseline::mixed_cell_kernels(),
                                        baseline::mixed_sum_kernels(),
                                        baseline::masked_cell_kernels(),
                                        baseline::residual_block_kernels(),
                                        baseline::trained_residual_block_kernels(),
                                        baseline::mixed_op_kernels()};
  switch (active_isa()) {
#if defined(__x86_64__)
    case Isa::avx512:
      return avx512_kernels;
    case Isa::avx2:
      return avx2_kernels;
#endif
    default:
      return baseline_kernels;
  }
}

}  // namespace vpdarts::cpu
