// The namespace of the native operators: torch.ops.<SHOWFACE_LIBRARY>. A build that is loaded beside the package, such
// as the Hub's kernel or the emulator of the tests, defines another one.
#pragma once

#include <torch/csrc/stable/library.h>

#ifndef SHOWFACE_LIBRARY
#define SHOWFACE_LIBRARY showface_C
#endif
