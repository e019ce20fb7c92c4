#include "cpu/dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "build_info.h"

namespace vpdarts::cpu {
namespace {

bool cpu_runs(Isa isa) {
#if defined(__x86_64__)
  // These builtins ask CPUID and, through XGETBV, whether the operating system saves the wide registers.
  __builtin_cpu_init();
  switch (isa) {
    case Isa::baseline:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return cpu_runs(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return isa == Isa::baseline;
}

std::vector<Isa> probe() {
  std::vector<Isa> found;
  for (Isa isa : build::isas) {
    if (cpu_runs(isa)) found.push_back(isa);
  }
  return found;
}

Isa choose() {
  const char* request = std::getenv("VPDARTS_CPU_ISA");
  if (request == nullptr || *request == '\0') return supported_isas().back();
  std::string choices;
  for (Isa isa : supported_isas()) {
    if (std::string(request) == name(isa)) return isa;
    choices += (choices.empty() ? "" : ", ") + std::string(name(isa));
  }
  throw std::invalid_argument("VPDARTS_CPU_ISA must be one of " + choices +
                              " (what this build and this CPU support); got '" + request +
                              "'. Unset it to use the fastest.");
}

}  // namespace

const char* name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::baseline:
      break;
  }
  return "baseline";
}

const std::vector<Isa>& supported_isas() {
  static const std::vector<Isa> isas = probe();
  return isas;
}

Isa active_isa() {
  static const Isa isa = choose();  // an exception leaves it undecided: the next call throws again
  return isa;
}

}  // namespace vpdarts::cpu
