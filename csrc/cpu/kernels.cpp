#include "cpu/kernels.h"

// The tables of the instruction set in whose namespace it stands.
#define VPDARTS_TABLE(name, Type) name##_kernels(),
#define VPDARTS_DEFINE_KERNELS                                         \
  const Kernels& kernels() {                                           \
    static const Kernels tables{VPDARTS_KERNEL_TABLES(VPDARTS_TABLE)}; \
    return tables;                                                     \
  }

namespace vpdarts::cpu {

namespace baseline {
VPDARTS_DEFINE_KERNELS
}

#if defined(__x86_64__)
namespace avx2 {
VPDARTS_DEFINE_KERNELS
}
namespace avx512 {
VPDARTS_DEFINE_KERNELS
}
namespace avx2_narrow {
using namespace avx2;  // of all that is not compiled for four lanes with FMA, too
VPDARTS_DEFINE_KERNELS
}  // namespace avx2_narrow
#endif

const Kernels& active_kernels(int64_t channels) {
#if defined(__x86_64__)
  if (active_isa() != Isa::baseline) {
    if (channels <= avx2_narrow::kernels().mixed_op.lanes) return avx2_narrow::kernels();
    if (channels <= avx2::kernels().mixed_op.lanes) return avx2::kernels();
  }
#endif
  switch (active_isa()) {
#if defined(__x86_64__)
    case Isa::avx512:
      return avx512::kernels();
    case Isa::avx2:
      return avx2::kernels();
#endif
    default:
      return baseline::kernels();
  }
}

}  // namespace vpdarts::cpu
