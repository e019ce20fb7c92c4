// The types that activations may have. What is computed from them is float.
#pragma once

namespace vpdarts::cuda {

enum class Number { kFloat32, kFloat16, kBFloat16 };

inline int bytes_of(Number number) { return number == Number::kFloat32 ? 4 : 2; }

}  // namespace vpdarts::cuda
