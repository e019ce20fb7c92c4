// The Python module vpdarts_fast._C: what the native library is and what it runs on.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "build_info.h"
#include "cpu/dispatch.h"
#include "cpu/kernels.h"

namespace py = pybind11;
using namespace vpdarts;

namespace {

template <typename Isas>
std::vector<std::string> names(const Isas& isas) {
  std::vector<std::string> result;
  for (cpu::Isa isa : isas) result.emplace_back(cpu::name(isa));
  return result;
}

py::dict build_info() {
  py::dict info;
  info["version"] = build::version;
  info["compiler"] = build::compiler;
  info["build_type"] = build::build_type;
  info["isas"] = names(build::isas);
  info["cuda"] = build::cuda;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native part of vpdarts_fast; use it through vpdarts_fast.native.";
  m.def(
      "cpu_isa", [] { return cpu::name(cpu::active_isa()); },
      "Instruction set in use; ValueError if VPDARTS_CPU_ISA names an unsupported one.");
  m.def(
      "cpu_lanes", [](int64_t channels) { return cpu::active_kernels(channels).masked_cell.lanes; },
      "Floats per vector in use for so many channels.");
  m.def(
      "mixed_op_lanes", [](int64_t channels) { return cpu::active_kernels(channels).mixed_op.lanes; },
      "Floats per vector of mixed_op.");
  m.def(
      "supported_isas", [] { return names(cpu::supported_isas()); },
      "Instruction sets that this build and this CPU support, slowest first.");
  m.def("build_info", &build_info, "How this library was built.");
}
