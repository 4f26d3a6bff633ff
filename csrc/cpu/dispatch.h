// The instruction sets that the CPU kernels are compiled for. The choice between them is made at run time, so one build
// serves every processor of its architecture.
#pragma once

#include <cstdlib>
#include <cstring>

#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define SHOWFACE_X86 1
#else
#define SHOWFACE_X86 0
#endif

namespace showface {

enum class InstructionSet { baseline, avx2, avx512 };

// The best instruction set of this processor, or a lower one if the environment variable SHOWFACE_INSTRUCTION_SET is
// "baseline" or "avx2". Tests use the variable to run the kernels for older processors. It is read once, at the first
// call.
inline InstructionSet best_instruction_set() {
#if SHOWFACE_X86
  static const InstructionSet best = [] {
    const char* limit = std::getenv("SHOWFACE_INSTRUCTION_SET");
    if (limit != nullptr && std::strcmp(limit, "baseline") == 0) return InstructionSet::baseline;
    const bool at_most_avx2 = limit != nullptr && std::strcmp(limit, "avx2") == 0;
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    return avx2 && avx512 && !at_most_avx2 ? InstructionSet::avx512
           : avx2                          ? InstructionSet::avx2
                                           : InstructionSet::baseline;
  }();
  return best;
#else
  return InstructionSet::baseline;
#endif
}

}  // namespace showface
