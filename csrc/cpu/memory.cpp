// memory_read on the CPU: float32 and float64, accumulated in their own type.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../common/memory.h"
#include "dispatch.h"

namespace showface {
namespace {

template <typename T>
struct Problem {
  const T* latent;         // (T, C)
  const T* memory;         // (K, S, C)
  const int64_t* region;   // (T,)
  const T* inverse_norm;   // (K, S), set for the regions in use
  T* out;                  // (T, C)
  T temperature;
  MemoryShape shape;
};

template <typename T>
SHOWFACE_BODY T dot(const T* a, const T* b, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// Four rows at a time: one row's chain of additions would leave most of the multipliers idle.
template <typename T>
SHOWFACE_BODY void dot_rows(const T* a, const T* rows, int64_t count, int64_t n, T* out) {
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) {
    const T *b0 = rows + r * n, *b1 = b0 + n, *b2 = b1 + n, *b3 = b2 + n;
    T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t i = 0; i < n; ++i) {
      s0 += a[i] * b0[i];
      s1 += a[i] * b1[i];
      s2 += a[i] * b2[i];
      s3 += a[i] * b3[i];
    }
    out[r] = s0, out[r + 1] = s1, out[r + 2] = s2, out[r + 3] = s3;
  }
  for (; r < count; ++r) out[r] = dot(a, rows + r * n, n);
}

// out = sum over r of weight[r] * rows[r]; four rows for each pass over `out`.
template <typename T>
SHOWFACE_BODY void mix_rows(const T* weight, const T* rows, int64_t count, int64_t n, T* out) {
  std::fill(out, out + n, T(0));
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) {
    const T *b0 = rows + r * n, *b1 = b0 + n, *b2 = b1 + n, *b3 = b2 + n;
    const T w0 = weight[r], w1 = weight[r + 1], w2 = weight[r + 2], w3 = weight[r + 3];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] += w0 * b0[i] + w1 * b1[i] + w2 * b2[i] + w3 * b3[i];
  }
  for (; r < count; ++r) {
    const T* b = rows + r * n;
    const T w = weight[r];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] += w * b[i];
  }
}

template <typename T>
SHOWFACE_BODY void read_tokens_body(const Problem<T>& p, int64_t begin, int64_t end, T* weight) {
  const int64_t slots = p.shape.slots, channels = p.shape.channels;
  for (int64_t t = begin; t < end; ++t) {
    T* out = p.out + t * channels;
    const int64_t region = p.region[t];
    if (region < 0) {
      std::fill(out, out + channels, T(0));
      continue;
    }
    const T* latent = p.latent + t * channels;
    const T* block = p.memory + region * slots * channels;
    const T* inverse_norm = p.inverse_norm + region * slots;
    const T norm = std::max(std::sqrt(dot(latent, latent, channels)), T(kMinNorm));
    const T gain = p.temperature / norm;

    dot_rows(latent, block, slots, channels, weight);
    T peak = -std::numeric_limits<T>::infinity();
    for (int64_t s = 0; s < slots; ++s) {
      weight[s] *= gain * inverse_norm[s];
      peak = std::max(peak, weight[s]);
    }
    T sum = 0;
    for (int64_t s = 0; s < slots; ++s) {
      weight[s] = std::exp(weight[s] - peak);
      sum += weight[s];
    }
    for (int64_t s = 0; s < slots; ++s) weight[s] /= sum;
    mix_rows(weight, block, slots, channels, out);
  }
}

#if SHOWFACE_X86
template <typename T>
SHOWFACE_AVX2 void read_tokens_avx2(const Problem<T>& p, int64_t begin, int64_t end, T* weight) {
  read_tokens_body(p, begin, end, weight);
}
template <typename T>
SHOWFACE_AVX512 void read_tokens_avx512(const Problem<T>& p, int64_t begin, int64_t end, T* weight) {
  read_tokens_body(p, begin, end, weight);
}
#endif

template <typename T>
void read_tokens(const Problem<T>& p, int64_t begin, int64_t end, T* weight) {
#if SHOWFACE_X86
  switch (best_instruction_set()) {
    case InstructionSet::avx512: return read_tokens_avx512(p, begin, end, weight);
    case InstructionSet::avx2: return read_tokens_avx2(p, begin, end, weight);
    default: break;
  }
#endif
  read_tokens_body(p, begin, end, weight);
}

// 1 / max(|slot|, kMinNorm) of every slot in the regions that a token reads. Raises on a region out of range.
template <typename T>
std::vector<T> inverse_slot_norms(const T* memory, const int64_t* region, const MemoryShape& shape) {
  std::vector<char> used(shape.regions, 0);
  for (int64_t t = 0; t < shape.tokens; ++t) {
    STD_TORCH_CHECK(region[t] >= -1 && region[t] < shape.regions, "memory_read: region ", region[t], " at token ", t,
                    " is outside -1..", shape.regions - 1);
    if (region[t] >= 0) used[region[t]] = 1;
  }
  std::vector<T> norms(shape.regions * shape.slots);
  torch::stable::parallel_for(0, shape.regions, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      if (!used[k]) continue;
      for (int64_t s = k * shape.slots; s < (k + 1) * shape.slots; ++s) {
        const T* slot = memory + s * shape.channels;
        norms[s] = T(1) / std::max(std::sqrt(dot(slot, slot, shape.channels)), T(kMinNorm));
      }
    }
  });
  return norms;
}

template <typename T>
void run(const Tensor& latent, const Tensor& memory, const Tensor& region, T temperature, const MemoryShape& shape,
         Tensor& out) {
  const auto* memory_data = static_cast<const T*>(memory.const_data_ptr());
  const auto* region_data = static_cast<const int64_t*>(region.const_data_ptr());
  const std::vector<T> norms = inverse_slot_norms(memory_data, region_data, shape);
  const Problem<T> problem{static_cast<const T*>(latent.const_data_ptr()), memory_data, region_data, norms.data(),
                           static_cast<T*>(out.mutable_data_ptr()), temperature, shape};
  // About 100,000 multiplications are worth waking a thread for.
  const int64_t grain = std::max<int64_t>(1, 100'000 / std::max<int64_t>(1, 2 * shape.slots * shape.channels));
  torch::stable::parallel_for(0, shape.tokens, grain, [&](int64_t begin, int64_t end) {
    std::vector<T> weight(shape.slots);
    read_tokens(problem, begin, end, weight.data());
  });
}

Tensor memory_read(const Tensor& latent, const Tensor& memory, const Tensor& region,
                   const std::optional<Tensor>& temperature, double scale) {
  const MemoryShape shape = check_memory_read(latent, memory, region, temperature);
  const ScalarType type = latent.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "memory_read on the CPU takes float32 and float64");
  Tensor out = torch::stable::empty({shape.tokens, shape.channels}, type, std::nullopt, latent.device());
  const double factor =
      temperature.has_value() ? load_scalar<double>(temperature->const_data_ptr(), temperature->scalar_type()) : 1.0;
  const Tensor z = as_contiguous(latent), m = as_contiguous(memory), r = as_contiguous(region);
  if (type == ScalarType::Float) {
    run<float>(z, m, r, static_cast<float>(scale * factor), shape, out);
  } else {
    run<double>(z, m, r, scale * factor, shape, out);
  }
  return out;
}

}  // namespace
}  // namespace showface

STABLE_TORCH_LIBRARY_IMPL(showface_C, CPU, m) { m.impl("memory_read", TORCH_BOX(&showface::memory_read)); }
