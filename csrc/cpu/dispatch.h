// The instruction sets that the CPU kernels are compiled for. The choice between them is made at run time, so one build
// serves every processor of its architecture.
#pragma once

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>

#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define SHOWFACE_X86 1
#else
#define SHOWFACE_X86 0
#endif

// The kernels for bfloat16 use intrinsics, which need a compiler that knows AMX and Linux's way to ask for its tiles.
#if SHOWFACE_X86 && defined(__x86_64__) && defined(__linux__) && !defined(__clang__) && __GNUC__ >= 11
#define SHOWFACE_X86_BF16 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define SHOWFACE_X86_BF16 0
#endif

namespace showface {

// Each one includes those before it. The last two have kernels for bfloat16 only.
enum class InstructionSet { baseline, avx2, avx512, avx512_bf16, amx };
inline constexpr std::array kInstructionSetNames{"baseline", "avx2", "avx512", "avx512_bf16", "amx"};
// The best one that kernels were compiled for.
constexpr InstructionSet kBestCompiled = SHOWFACE_X86_BF16 ? InstructionSet::amx
                                         : SHOWFACE_X86    ? InstructionSet::avx512
                                                           : InstructionSet::baseline;

#if SHOWFACE_X86_BF16
inline bool has_avx512_bf16() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

// Whether the processor has AMX for bfloat16, and the operating system lets this process use it.
inline bool has_amx() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// The best instruction set of this processor, or a lower one if the environment variable SHOWFACE_INSTRUCTION_SET names
// it. Tests use the variable to run the kernels for older processors. It is read once, at the first call.
inline InstructionSet best_instruction_set() {
  static const InstructionSet best = [] {
    InstructionSet here = InstructionSet::baseline;
#if SHOWFACE_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      here = InstructionSet::avx2;
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
        here = InstructionSet::avx512;
#if SHOWFACE_X86_BF16
        // Without AMX, an Intel processor (Emerald Rapids) was faster with float32 than with AVX512-BF16.
        if (has_avx512_bf16() && has_amx()) {
          here = InstructionSet::amx;
        } else if (has_avx512_bf16() && __builtin_cpu_is("amd")) {
          here = InstructionSet::avx512_bf16;
        }
#endif
      }
    }
#endif
    const char* limit = std::getenv("SHOWFACE_INSTRUCTION_SET");
    for (size_t i = 0; limit != nullptr && i < kInstructionSetNames.size(); ++i) {
      if (std::string_view(limit) == kInstructionSetNames[i]) here = std::min(here, static_cast<InstructionSet>(i));
    }
    return here;
  }();
  return best;
}

}  // namespace showface
