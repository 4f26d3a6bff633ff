// Memory addressing on the CPU: a region's tokens are the queries of a group, the slots of its block the keys.
#include <cmath>
#include <numeric>
#include <tuple>

#include "../common/library.h"
#include "../common/memory.h"
#include "attention.h"

namespace showface {
namespace {

// The tokens sorted by region, and one group per region. If `sums` over tokens are wanted, a region with many tokens
// becomes several groups, which are separate tasks.
template <typename T>
struct Regions {
  MemoryShape shape;
  std::vector<int64_t> tokens;  // (T): tokens sorted by region; region -1 comes last
  int64_t with_region = 0;
  std::vector<int64_t> slots;  // 0 .. S-1
  std::vector<const T*> key_rows, value_rows;
  std::vector<Group<T>> groups;
  std::vector<int64_t> region_of;  // region of each group; the groups of a region are consecutive

  Regions(const MemoryShape& shape, const Tensor& latent, const Tensor& memory, const Tensor& value,
          const Tensor& region, T temperature, bool sums)
      : shape(shape), tokens(shape.tokens), slots(shape.slots) {
    const int64_t regions = shape.regions;
    const auto* of_token = static_cast<const int64_t*>(region.const_data_ptr());
    std::vector<int64_t> first(regions + 2, 0);  // First position of each region's tokens; region -1 counts as K.
    // As in every backend, a region out of range counts as -1. showface.ops refuses it before.
    const auto place = [&](int64_t t) { return of_token[t] < 0 || of_token[t] >= regions ? regions : of_token[t]; };
    for (int64_t t = 0; t < shape.tokens; ++t) ++first[place(t) + 1];
    std::partial_sum(first.begin(), first.end(), first.begin());
    with_region = first[regions];
    std::vector<int64_t> next = first;
    for (int64_t t = 0; t < shape.tokens; ++t) tokens[next[place(t)]++] = t;
    std::iota(slots.begin(), slots.end(), 0);

    const int64_t stride = shape.slots + kKeyFill;
    key_rows.resize(regions * stride);
    value_rows.resize(regions * stride);
    const T *queries = data<T>(latent), *keys = data<T>(memory), *values = data<T>(value);
    for (int64_t k = 0; k < regions; ++k) {
      for (int64_t s = 0; s < stride; ++s) {
        const int64_t row = k * shape.slots + (s < shape.slots ? s : 0);
        key_rows[k * stride + s] = keys + row * shape.channels;
        value_rows[k * stride + s] = values + row * shape.values;
      }
    }
    // The size of a group depends only on the number of tokens, so that sums have the same bits on any machine.
    const int64_t piece = sums ? std::max<int64_t>(2048, shape.tokens / 64) : shape.tokens + 1;
    for (int64_t k = 0; k < regions; ++k) {
      for (int64_t begin = first[k]; begin == first[k] || begin < first[k + 1]; begin += piece) {
        Group<T> group{};
        group.queries = std::min(piece, first[k + 1] - begin);
        group.keys = shape.slots;
        group.channels = shape.channels;
        group.values = shape.values;
        group.temperature = temperature;
        group.query = queries;
        group.query_index = tokens.data() + begin;
        group.key_index = slots.data();
        group.key_rows = key_rows.data() + k * stride;
        group.value_rows = value_rows.data() + k * stride;
        groups.push_back(group);
        region_of.push_back(k);
      }
    }
  }

  // Whether group g is the first of its region, and whether it is the only one.
  bool first(size_t g) const { return g == 0 || region_of[g] != region_of[g - 1]; }
  bool alone(size_t g) const { return first(g) && (g + 1 == groups.size() || first(g + 1)); }

  // Set the rows (of `width` elements) of tokens without a region to zero.
  void clear_others(T* rows, int64_t width) const {
    for (int64_t i = with_region; i < shape.tokens; ++i) std::fill_n(rows + tokens[i] * width, width, T(0));
  }
};

// Results of `size` elements per region, summed over its groups. The first group of a region writes to the result
// itself. finish() adds the partial results of the other groups, in order.
template <typename T>
class Sums {
 public:
  Sums(const Regions<T>& regions, int64_t size, T* result)
      : regions_(regions),
        size_(size),
        result_(result),
        rest_(size * static_cast<int64_t>(regions.groups.size() - regions.shape.regions)) {
    T* next = rest_.get();
    for (size_t g = 0; g < regions.groups.size(); ++g) {
      places_.push_back(regions.first(g) ? result + regions.region_of[g] * size : std::exchange(next, next + size));
    }
  }
  T* of_group(size_t g) const { return places_[g]; }

  void finish() const {
    for (size_t g = 1; g < places_.size(); ++g) {
      if (regions_.first(g)) continue;
      T* to = result_ + regions_.region_of[g] * size_;
      torch::stable::parallel_for(0, size_, 1 << 15, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) to[i] += places_[g][i];
      });
    }
  }

 private:
  const Regions<T>& regions_;
  int64_t size_;
  T* result_;
  Buffer<T> rest_;
  std::vector<T*> places_;
};

std::tuple<Tensor, Tensor> memory_attend(const Tensor& latent, const Tensor& memory, const std::optional<Tensor>& value,
                                         const Tensor& region, const std::optional<Tensor>& temperature, double scale,
                                         bool) {
  const MemoryShape shape = check_memory("memory_attend", latent, memory, value, region, temperature);
  const Tensor z = as_contiguous(latent), m = as_contiguous(memory), r = as_contiguous(region);
  const Tensor v = value.has_value() ? as_contiguous(*value) : m;
  Tensor out = empty(latent, {shape.tokens, shape.values}), lse = empty(latent, {shape.tokens});
  in_type_of("memory_attend", latent, temperature, scale, [&]<typename T>(T tau) {
    Regions<T> regions(shape, z, m, v, r, tau, false);
    for (Group<T>& group : regions.groups) {
      group.out = data<T>(out);
      group.lse = data<T>(lse);
    }
    attend(regions.groups);
    regions.clear_others(data<T>(out), shape.values);
    regions.clear_others(data<T>(lse), 1);
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> memory_attend_backward(
    const Tensor& grad, const Tensor& latent, const Tensor& memory, const std::optional<Tensor>& value,
    const Tensor& region, const Tensor& out, const Tensor& lse, const std::optional<Tensor>& temperature, double scale,
    bool) {
  constexpr const char* op = "memory_attend_backward";
  const MemoryShape shape = check_memory(op, latent, memory, value, region, temperature);
  check_memory_results(op, shape, latent, grad, out, lse);
  const Tensor z = as_contiguous(latent), m = as_contiguous(memory), r = as_contiguous(region);
  const Tensor v = value.has_value() ? as_contiguous(*value) : m;
  const Tensor g = as_contiguous(grad), o = as_contiguous(out), l = as_contiguous(lse);
  Tensor grad_latent = empty(latent, {shape.tokens, shape.channels});
  Tensor grad_memory = empty(memory, {shape.regions, shape.slots, shape.channels});
  Tensor grad_value = empty(memory, {value.has_value() ? shape.regions : 0, shape.slots, shape.values});
  Tensor grad_temperature = empty(latent, {});
  in_type_of(op, latent, temperature, scale, [&]<typename T>(T tau) {
    Regions<T> regions(shape, z, m, v, r, tau, true);
    const Sums<T> of_memory(regions, shape.slots * shape.channels, data<T>(grad_memory));
    const Sums<T> of_value(regions, value.has_value() ? shape.slots * shape.values : 0, data<T>(grad_value));
    for (size_t i = 0; i < regions.groups.size(); ++i) {
      Group<T>& group = regions.groups[i];
      group.grad = data<T>(g);
      group.out = data<T>(o);
      group.lse = data<T>(l);
      group.grad_query = data<T>(grad_latent);
      group.grad_key = of_memory.of_group(i);
      group.grad_value = of_value.of_group(i);
      group.tied = !value.has_value();
    }
    *data<T>(grad_temperature) = static_cast<T>(attend_backward(regions.groups));
    of_memory.finish();
    if (value.has_value()) of_value.finish();
    regions.clear_others(data<T>(grad_latent), shape.channels);
  });
  return {grad_latent, grad_memory, grad_value, grad_temperature};
}

std::tuple<Tensor, Tensor> memory_accumulate(const Tensor& latent, const Tensor& memory, const Tensor& region,
                                             const std::optional<Tensor>& temperature, double scale, bool) {
  const MemoryShape shape = check_memory("memory_accumulate", latent, memory, std::nullopt, region, temperature);
  const Tensor z = as_contiguous(latent), m = as_contiguous(memory), r = as_contiguous(region);
  Tensor rho = empty(memory, {shape.regions, shape.slots});
  Tensor total = empty(memory, {shape.regions, shape.slots, shape.channels});
  in_type_of("memory_accumulate", latent, temperature, scale, [&]<typename T>(T tau) {
    Regions<T> regions(shape, z, m, m, r, tau, true);
    const Sums<T> of_rho(regions, shape.slots, data<T>(rho));
    const Sums<T> of_total(regions, shape.slots * shape.channels, data<T>(total));
    for (size_t i = 0; i < regions.groups.size(); ++i) {
      regions.groups[i].rho = of_rho.of_group(i);
      regions.groups[i].total = of_total.of_group(i);
    }
    accumulate(regions.groups);
    of_rho.finish();
    of_total.finish();
  });
  return {rho, total};
}

// Apply blend() to every slot.
template <typename T>
void blend_slots(const T* memory, const T* rho, const T* total, double log_keep, int64_t slots, int64_t channels,
                 T* to) {
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(channels, 1));
  torch::stable::parallel_for(0, slots, grain, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      blend(memory + s * channels, rho[s], total + s * channels, log_keep, channels, to + s * channels);
    }
  });
}

Tensor memory_blend(const Tensor& memory, const Tensor& rho, const Tensor& total, double rate) {
  check_memory_blend(memory, rho, total);
  STD_TORCH_CHECK(rho.scalar_type() == memory.scalar_type(), "memory_blend on the CPU takes tensors of one dtype");
  const Tensor m = as_contiguous(memory), p = as_contiguous(rho), t = as_contiguous(total);
  Tensor out = empty(memory, {memory.size(0), memory.size(1), memory.size(2)});
  in_type_of("memory_blend", memory, std::nullopt, 1, [&]<typename T>(T) {
    blend_slots(data<T>(m), data<T>(p), data<T>(t), std::log1p(-rate), rho.numel(), memory.size(2), data<T>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor> memory_write(const Tensor& latent, const Tensor& memory, const Tensor& region,
                                        const std::optional<Tensor>& temperature, double scale, double rate, bool) {
  const MemoryShape shape = check_memory("memory_write", latent, memory, std::nullopt, region, temperature);
  const Tensor z = as_contiguous(latent), m = as_contiguous(memory), r = as_contiguous(region);
  const double log_keep = std::log1p(-rate);
  Tensor rho = empty(memory, {shape.regions, shape.slots});
  Tensor out = empty(memory, {shape.regions, shape.slots, shape.channels});
  in_type_of("memory_write", latent, temperature, scale, [&]<typename T>(T tau) {
    Regions<T> regions(shape, z, m, m, r, tau, true);
    // A region with one group is blended by the task that sums it. For other regions, `out` holds the sums at first.
    const int64_t size = shape.slots * shape.channels;
    const Sums<T> of_rho(regions, shape.slots, data<T>(rho));
    const Sums<T> of_total(regions, size, data<T>(out));
    for (size_t i = 0; i < regions.groups.size(); ++i) {
      Group<T>& group = regions.groups[i];
      group.rho = of_rho.of_group(i);
      (regions.alone(i) ? group.blended : group.total) = of_total.of_group(i);
      group.log_keep = log_keep;
    }
    accumulate(regions.groups);
    of_rho.finish();
    of_total.finish();
    for (size_t i = 0; i < regions.groups.size(); ++i) {
      if (regions.alone(i) || !regions.first(i)) continue;
      const int64_t slot = regions.region_of[i] * shape.slots, at = slot * shape.channels;
      blend_slots(data<T>(m) + at, data<T>(rho) + slot, data<T>(out) + at, log_keep, shape.slots, shape.channels,
                  data<T>(out) + at);
    }
  });
  return {out, rho};
}

}  // namespace
}  // namespace showface

STABLE_TORCH_LIBRARY_IMPL(SHOWFACE_LIBRARY, CPU, m) {
  m.impl("memory_attend", TORCH_BOX(&showface::memory_attend));
  m.impl("memory_attend_backward", TORCH_BOX(&showface::memory_attend_backward));
  m.impl("memory_accumulate", TORCH_BOX(&showface::memory_accumulate));
  m.impl("memory_write", TORCH_BOX(&showface::memory_write));
  m.impl("memory_blend", TORCH_BOX(&showface::memory_blend));
}
