// The Python module showface._C. Importing it registers the native operators. build_info() says how it was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "cpu/dispatch.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " + std::string(__clang_version__);
#else
  return "g++ " + std::string(__VERSION__);
#endif
}

std::vector<std::string> instruction_sets(showface::InstructionSet up_to) {
  const auto& names = showface::kInstructionSetNames;
  return {names.begin(), names.begin() + static_cast<int>(up_to) + 1};
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = compiler();
  info["torch_headers"] = SHOWFACE_TORCH_HEADERS;
  info["instruction_sets"] = instruction_sets(showface::kBestCompiled);
  info["instruction_sets_here"] = instruction_sets(showface::best_instruction_set());
#ifdef SHOWFACE_CUDA
  info["cuda"] = true;
  info["cuda_version"] = SHOWFACE_CUDA_VERSION;
  info["cuda_archs"] = SHOWFACE_CUDA_ARCHS;
#else
  info["cuda"] = false;
  info["cuda_version"] = py::none();
  info["cuda_archs"] = "";
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native operators of showface (torch.ops.showface_C) and how they were built.";
  m.def(
      "build_info", &build_info,
      "How this extension was built.\n\n"
      "Keys: compiler, torch_headers (the torch it was compiled against), instruction_sets (compiled),\n"
      "instruction_sets_here (those that this processor supports; the last one with kernels for a dtype is used),\n"
      "cuda (bool), cuda_version (str or None), cuda_archs (str, such as 'sm_80 sm_90 compute_90'; compute_* is PTX).");
}
