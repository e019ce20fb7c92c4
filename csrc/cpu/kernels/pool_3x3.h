// 3x3 pools with a padding of 1, of any stride, and their adjoints.
//
// A pool goes along the rows first and then down the columns, of which at most three rows are kept.
#pragma once

#include "images.h"
#include "mixed_op.h"

namespace {

using vpdarts::cpu::StageShape;

typedef int32_t Places __attribute__((vector_size(4 * VPDARTS_LANES)));

struct Span {
  int64_t first, count;
};

// The pixels of 0..size-1 in the window of output pixel i.
inline Span window(int64_t i, int64_t stride, int64_t size) {
  const int64_t middle = i * stride, first = middle > 0 ? middle - 1 : 0;
  return {first, (middle + 2 < size ? middle + 2 : size) - first};
}

// The output pixels of 0..out_size-1 in whose windows pixel i is.
inline Span reached(int64_t i, int64_t stride, int64_t out_size) {
  const int64_t first = i > 0 ? (i - 1 + stride - 1) / stride : 0, last = (i + 1) / stride + 1;
  return {first, (last < out_size ? last : out_size) - first};
}

inline float share(const Span& span) { return 1.0f / static_cast<float>(span.count); }

// For each of `count` rows, rows(row, span(row), those rows of the ring); columns(row, place in the ring) has
// written them.
template <typename SpanOf, typename Columns, typename Rows>
inline void down_the_rows(int64_t count, int64_t row_floats, float* ring, const SpanOf& span,
                          const Columns& columns, const Rows& rows) {
  int64_t next = 0;
  for (int64_t y = 0; y < count; ++y) {
    const Span some = span(y);
    for (; next < some.first + some.count; ++next) columns(next, ring + next % 3 * row_floats);
    const float* from[3];
    for (int64_t r = 0; r < 3; ++r) from[r] = ring + (some.first + r) % 3 * row_floats;
    rows(y, some, from);
  }
}

// Calls visit(pixel, span of the pixel, channel); a span of three, the most frequent one, as a constant.
template <typename SpanOf, typename Visit>
inline __attribute__((always_inline)) void along_the_row(int64_t width, int64_t padded, const SpanOf& span,
                                                         const Visit& visit) {
  for (int64_t i = 0; i < width; ++i) {
    const Span some = span(i);
    if (some.count == 3) {
      for (int64_t c = 0; c < padded; c += kLanes) visit(i, Span{some.first, 3}, c);
    } else {
      for (int64_t c = 0; c < padded; c += kLanes) visit(i, some, c);
    }
  }
}

// The maximum, which NaN is too.
inline __attribute__((always_inline)) Vec larger(Vec best, Vec value) {
  return (value > best) | (value != value) ? value : best;
}

// join of `count` vectors, at most three, `step` floats apart.
template <typename Join>
inline __attribute__((always_inline)) Vec joined(const float* from, int64_t step, int64_t count,
                                                 const Join& join) {
  Vec result = load(from);
  if (count > 1) result = join(result, load(from + step));
  if (count > 2) result = join(result, load(from + 2 * step));
  return result;
}

// finish(join over every window, spans of its rows and columns).
template <typename Join, typename Finish>
inline void pool_with(const StageShape& s, const float* x, float* out, float* ring, const Join& join,
                      const Finish& finish) {
  const int64_t padded = s.padded, width = s.out_width();
  const auto rows_of = [&](int64_t y) { return window(y, s.stride, s.height); };
  const auto columns_of = [&](int64_t i) { return window(i, s.stride, s.width); };
  down_the_rows(
      s.out_height(), width * padded, ring, rows_of,
      [&](int64_t y, float* to) {
        along_the_row(width, padded, columns_of, [&](int64_t i, const Span& columns, int64_t c) {
          const float* from = x + (y * s.width + columns.first) * padded + c;
          store(to + i * padded + c, joined(from, padded, columns.count, join));
        });
      },
      [&](int64_t y, const Span& rows, const float* const* from) {
        float* to = out + y * width * padded;
        along_the_row(width, padded, columns_of, [&](int64_t i, const Span& columns, int64_t c) {
          const int64_t at = i * padded + c;
          Vec value = load(from[0] + at);
          for (int64_t r = 1; r < rows.count; ++r) value = join(value, load(from[r] + at));
          store(to + at, finish(value, rows, columns));
        });
      });
}

void average_pool(const StageShape& s, const float* x, float* out, float* ring) {
  pool_with(
      s, x, out, ring, [](Vec sum, Vec value) { return sum + value; },
      [](Vec sum, const Span& rows, const Span& columns) { return sum * (share(rows) * share(columns)); });
}

void maximum_pool(const StageShape& s, const float* x, float* out, float* ring) {
  pool_with(
      s, x, out, ring, [](Vec best, Vec value) { return larger(best, value); },
      [](Vec best, const Span&, const Span&) { return best; });
}

void average_pool_backward(const StageShape& s, const float* gradient, float* x_gradient, float* ring) {
  const int64_t padded = s.padded, width = s.out_width();
  down_the_rows(
      s.height, s.width * padded, ring, [&](int64_t y) { return reached(y, s.stride, s.out_height()); },
      [&](int64_t y, float* to) {
        along_the_row(
            s.width, padded, [&](int64_t i) { return reached(i, s.stride, width); },
            [&](int64_t i, const Span& some, int64_t c) {
              Vec sum{};
              for (int64_t k = some.first; k < some.first + some.count; ++k)
                sum += load(gradient + (y * width + k) * padded + c) * share(window(k, s.stride, s.width));
              store(to + i * padded + c, sum * share(window(y, s.stride, s.height)));
            });
      },
      [&](int64_t y, const Span& rows, const float* const* from) {
        float* to = x_gradient + y * s.width * padded;
        for (int64_t at = 0; at < s.width * padded; at += kLanes) {
          Vec sum = load(to + at);
          for (int64_t r = 0; r < rows.count; ++r) sum += load(from[r] + at);
          store(to + at, sum);
        }
      });
}

inline __attribute__((always_inline)) Places load_places(const float* p) {
  Places v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

inline __attribute__((always_inline)) void store_places(float* p, Places v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

inline __attribute__((always_inline)) Places place(int64_t i) { return Places{} + static_cast<int32_t>(i); }

// places [pixels of the output][padded] = where the first maximum of each window is, as PyTorch takes it: the
// row within the window, times three, plus the column, both from that before the middle on. ring: rows of
// values and of columns.
void maximum_places(const StageShape& s, const float* x, float* places, float* ring) {
  const int64_t padded = s.padded, width = s.out_width(), row = width * padded;
  down_the_rows(
      s.out_height(), 2 * row, ring, [&](int64_t y) { return window(y, s.stride, s.height); },
      [&](int64_t y, float* to) {
        along_the_row(
            width, padded, [&](int64_t i) { return window(i, s.stride, s.width); },
            [&](int64_t i, const Span& columns, int64_t c) {
              const float* from = x + (y * s.width + columns.first) * padded + c;
              const int64_t left = columns.first - i * s.stride + 1;
              Vec best = load(from);
              Places at = place(left);
              for (int64_t k = 1; k < columns.count; ++k) {
                const Vec value = load(from + k * padded);
                const Places better = (value > best) | (value != value);
                best = better ? value : best;
                at = better ? place(left + k) : at;
              }
              store(to + i * padded + c, best);
              store_places(to + row + i * padded + c, at);
            });
      },
      [&](int64_t y, const Span& rows, const float* const* from) {
        const int64_t top = rows.first - y * s.stride + 1;
        for (int64_t i = 0; i < row; i += kLanes) {
          Vec best = load(from[0] + i);
          Places at = load_places(from[0] + row + i) + place(3 * top);
          for (int64_t r = 1; r < rows.count; ++r) {
            const Vec value = load(from[r] + i);
            const Places better = (value > best) | (value != value);
            best = better ? value : best;
            at = better ? load_places(from[r] + row + i) + place(3 * (top + r)) : at;
          }
          store_places(places + y * row + i, at);
        }
      });
}

// scratch: an image of the output and six of its rows.
void maximum_pool_backward(const StageShape& s, const float* x, const float* gradient, float* x_gradient,
                           float* scratch) {
  const int64_t padded = s.padded, width = s.out_width();
  maximum_places(s, x, scratch, scratch + s.out().floats());
  for (int64_t y = 0; y < s.height; ++y) {
    const Span rows = reached(y, s.stride, s.out_height());
    along_the_row(
        s.width, padded, [&](int64_t i) { return reached(i, s.stride, width); },
        [&](int64_t i, const Span& columns, int64_t c) {
          float* to = x_gradient + (y * s.width + i) * padded + c;
          Vec sum = load(to);
          const Vec zeros{};
          for (int64_t r = rows.first; r < rows.first + rows.count; ++r) {
            for (int64_t k = columns.first; k < columns.first + columns.count; ++k) {
              const int64_t at = (r * width + k) * padded + c;
              const int64_t own = 3 * (y - r * s.stride + 1) + i - k * s.stride + 1;
              sum += load_places(scratch + at) == place(own) ? load(gradient + at) : zeros;
            }
          }
          store(to, sum);
        });
  }
}

// Floats of scratch memory of a pool and of its adjoint.
inline int64_t pool_floats(const StageShape& s) {
  const int64_t row = (s.width > s.out_width() ? s.width : s.out_width()) * s.padded;
  return s.out().floats() + 6 * row;
}

}  // namespace
