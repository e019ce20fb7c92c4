// Which instruction set the CPU code runs with: probed once per process, chosen at run time.
#pragma once

#include <vector>

namespace vpdarts::cpu {

// Slowest first. avx2 includes FMA; avx512 is F, BW, DQ and VL on top of avx2.
enum class Isa { baseline, avx2, avx512 };

// The name that users read and write: "baseline", "avx2" or "avx512".
const char* name(Isa isa);

// What this build contains and this CPU, under this operating system, can run; slowest first, never
// empty. Thread safe.
const std::vector<Isa>& supported_isas();

// The fastest supported one, or the one that the environment variable VPDARTS_CPU_ISA names. Decided on
// the first call; thread safe. Throws std::invalid_argument if the variable names anything unsupported.
Isa active_isa();

}  // namespace vpdarts::cpu
