// Matrix products in fp32, plain and grouped by expert, for training on a CPU with AVX-512; elsewhere this file is empty.
// Knows nothing about torch, layers or what the matrices mean. Plain C interface, sizes count elements.
// The right factor is packed into panels that a second-level cache holds; the left one is read where it lies if it can be.
// Every sum runs over the inner dimension in one order, whatever the other sizes and the number of threads.
#if defined(__AVX512F__)
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "rows.h"
#include "threads.h"

namespace {

constexpr int ROWS = 6, VECTORS = 4, COLUMNS = VECTORS * LANES;  // 24 sums and 4 operands fit the 32 vector registers
constexpr int DEPTH = 512;                                      // inner dimension of a packed block
constexpr int BLOCK = DEPTH * 256;                              // elements of one: half a second-level cache of 1 MB
constexpr int RUN = 16 * ROWS;                                  // rows of the left factor that are copied at a time

struct View {  // element (r, c) at data[r * row + c * column]
    const float* data;
    int64_t row, column;
    View at(int64_t r, int64_t c) const { return {data + r * row + c * column, row, column}; }
};

struct Out {
    float* data;
    int64_t row;
    bool add;  // to what is there
};

// out [M, 16 N] (+)= a [M, k] b [k, 16 N], b a packed panel
template <int M, int N> void tile(View a, const float* b, int k, Out out) {
    vec sums[M][N] = {};
    for (int i = 0; i < k; ++i, b += N * LANES, a.data += a.column) {
        vec right[N];
        for (int j = 0; j < N; ++j) right[j] = load(b + j * LANES);
        for (int r = 0; r < M; ++r) {
            float left = a.data[r * a.row];
            for (int j = 0; j < N; ++j) sums[r][j] += left * right[j];
        }
    }
    for (int r = 0; r < M; ++r)
        for (int j = 0; j < N; ++j) {  // added last: a long sum in parts loses less
            float* place = out.data + r * out.row + j * LANES;
            store(place, out.add ? load(place) + sums[r][j] : sums[r][j]);
        }
}

typedef void (*Tile)(View, const float*, int, Out);
const Tile TILES[VECTORS][ROWS] = {
    {tile<1, 1>, tile<2, 1>, tile<3, 1>, tile<4, 1>, tile<5, 1>, tile<6, 1>},
    {tile<1, 2>, tile<2, 2>, tile<3, 2>, tile<4, 2>, tile<5, 2>, tile<6, 2>},
    {tile<1, 3>, tile<2, 3>, tile<3, 3>, tile<4, 3>, tile<5, 3>, tile<6, 3>},
    {tile<1, 4>, tile<2, 4>, tile<3, 4>, tile<4, 4>, tile<5, 4>, tile<6, 4>},
};

// x [LANES, LANES], rows `stride` apart, -> its transpose: pairs, fours, then whole quarters of rows change places
void transpose(const float* x, int64_t stride, float* out, int64_t out_stride) {
    __m512 a[LANES], b[LANES];
    for (int i = 0; i < LANES; ++i) a[i] = _mm512_loadu_ps(x + i * stride);
    for (int i = 0; i < LANES; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int j = 0; j < 2; ++j) {
            a[i + 2 * j] = _mm512_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
            a[i + 2 * j + 1] = _mm512_shuffle_ps(b[i + j], b[i + j + 2], 0xEE);
        }
    for (int i = 0; i < LANES; i += 8)
        for (int j = 0; j < 4; ++j) {
            b[i + j] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0x88);
            b[i + j + 4] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0xDD);
        }
    for (int j = 0; j < 8; ++j) {
        _mm512_storeu_ps(out + j * out_stride, _mm512_shuffle_f32x4(b[j], b[j + 8], 0x88));
        _mm512_storeu_ps(out + (j + 8) * out_stride, _mm512_shuffle_f32x4(b[j], b[j + 8], 0xDD));
    }
}

int padded(int n) { return (n + LANES - 1) / LANES * LANES; }

// b [k, n], n up to COLUMNS -> a panel [k, padded(n)], zeros at the end of each row
void pack_panel(View b, int k, int n, float* out) {
    int width = padded(n), whole = n / LANES * LANES, first = 0;
    if (b.column == 1) {
        for (; first < k; ++first)
            for (int c = 0; c < whole; c += LANES) store(out + first * width + c, load(b.data + first * b.row + c));
    } else if (b.row == 1) {
        for (; first + LANES <= k; first += LANES)
            for (int c = 0; c < whole; c += LANES) transpose(b.at(first, c).data, b.column, out + first * width + c, width);
    }
    for (int i = 0; i < k; ++i) {
        for (int c = i < first ? whole : 0; c < n; ++c) out[i * width + c] = *b.at(i, c).data;
        std::fill(out + i * width + n, out + (i + 1) * width, 0.0f);
    }
}

// Memory that the product after this one reads; tiles fetch it bit by bit while they work.
struct Ahead {
    const float* data = nullptr;
    int64_t left = 0;
    void fetch() {
        for (int i = 0; i < 40 && left > 0; ++i, data += LANES, left -= LANES) __builtin_prefetch(data, 0, 2);
    }
};

struct Scratch {
    std::vector<float> right, left;
    float edge[ROWS * COLUMNS];
    Ahead ahead;
};
Scratch& scratch() {
    static thread_local Scratch s;
    return s;
}

// out [m, n] (+)= a [m, k] b [k, n], b packed: ROWS rows of a at a time stay in the first-level cache
void strip(View a, const float* b, int m, int n, int k, Out out) {
    for (int r = 0; r < m; r += ROWS) {
        int rows = std::min(ROWS, m - r);
        const float* panel = b;
        for (int j = 0; j < n; j += COLUMNS) {
            int count = std::min(COLUMNS, n - j), width = padded(count);
            Out place{out.data + r * out.row + j, out.row, out.add};
            for (int i = 0; i < rows; ++i)  // written a whole tile later: time enough to fetch them
                for (int c = 0; c < count; c += LANES) __builtin_prefetch(place.data + i * place.row + c, 1);
            scratch().ahead.fetch();
            if (a.column == 1 && r + ROWS < m) {  // and the next rows of a
                int share = (k / LANES * COLUMNS + n - 1) / n, first = j / COLUMNS * share;
                for (int q = 0; q < std::min(ROWS, m - r - ROWS); ++q)
                    for (int i = first; i < first + share; ++i) __builtin_prefetch(a.at(r + ROWS + q, i * LANES).data, 0, 2);
            }
            Tile run = TILES[width / LANES - 1][rows - 1];
            if (count == width) {
                run(a.at(r, 0), panel, k, place);
            } else {
                float* edge = scratch().edge;
                for (int i = 0; i < rows && out.add; ++i) std::copy_n(place.data + i * place.row, count, edge + i * width);
                run(a.at(r, 0), panel, k, {edge, width, out.add});
                for (int i = 0; i < rows; ++i) std::copy_n(edge + i * width, count, place.data + i * place.row);
            }
            panel += int64_t(k) * width;
        }
    }
}

// Whether a tile may read `a` where it lies: along rows, or down columns that do not all fall on the same lines of a cache
bool direct(View a) {
    bool power_of_two = (a.column & (a.column - 1)) == 0;
    return a.column == 1 || (a.row == 1 && !(power_of_two && a.column >= 512));
}

void multiply(View a, View b, int m, int n, int k, Out out) {
    Scratch& s = scratch();
    if (k == 0 && !out.add)
        for (int r = 0; r < m; ++r) std::fill_n(out.data + r * out.row, n, 0.0f);
    int depths = (k + DEPTH - 1) / DEPTH, depth = depths ? padded((k + depths - 1) / depths) : 0;
    for (int from = 0; from < k; from += depth, out.add = true) {
        int inner = std::min(depth, k - from), columns = BLOCK / depth / COLUMNS * COLUMNS;
        for (int j = 0; j < n; j += columns) {
            int count = std::min(columns, n - j);
            s.right.resize(std::max(s.right.size(), size_t(inner) * padded(count)));
            float* panel = s.right.data();
            for (int c = 0; c < count; c += COLUMNS, panel += inner * COLUMNS)
                pack_panel(b.at(from, j + c), inner, std::min(COLUMNS, count - c), panel);
            View left = a.at(0, from);
            Out place{out.data + j, out.row, out.add};
            if (direct(left)) {
                strip(left, s.right.data(), m, count, inner, place);
                continue;
            }
            s.left.resize(std::max(s.left.size(), size_t(inner) * RUN));
            for (int r = 0; r < m; r += RUN) {
                int rows = std::min(RUN, m - r);
                for (int i = 0; i < inner; ++i)
                    for (int q = 0; q < rows; ++q) s.left[i * RUN + q] = *left.at(r + q, i).data;
                strip({s.left.data(), 1, RUN}, s.right.data(), rows, count, inner, {place.data + r * place.row, place.row, place.add});
            }
        }
    }
}

// y = down(silu(gate x) * up x * scale), for groups of rows. Experts have weights and sorted copies of rows each; a plain feed-forward
// has one set of weights, and its groups are runs of rows, as long as what lies between the products fits a cache.
struct FeedForward {
    const float *gate_up, *down;  // [groups, 2 f, d] and [groups, d, f], or of one group
    const int64_t* token;         // row of x that each copy has; null: its own
    const int64_t* ends;          // where each group ends
    const float* scale;           // of each copy; null: 1
    int groups, d, f;
    bool shared;  // weights
    int64_t begin(int e) const { return e ? ends[e - 1] : 0; }
    int64_t size() const { return int64_t(d) * f; }  // of down; gate_up has twice as many
    int64_t set(int e) const { return shared ? 0 : e; }
    const float* up(int e) const { return gate_up + set(e) * 2 * size(); }
    const float* low(int e) const { return down + set(e) * size(); }
    Ahead fetch_up(int e) const { return {up(e), e < groups && !shared ? 2 * size() : 0}; }
    Ahead fetch_low(int e) const { return {low(e), e < groups && !shared ? size() : 0}; }
};

struct Buffers {
    std::vector<float> x, grad, hidden, hidden_grad, gate_up_grad;
    static float* fit(std::vector<float>& part, size_t size) {
        if (part.size() < size) part.resize(size);
        return part.data();
    }
};
Buffers& buffers() {
    static thread_local Buffers b;
    return b;
}

// The group's rows of x [., d]: where they lie, or side by side in `part`
const float* rows_of(const FeedForward& p, int e, const float* x, std::vector<float>& part) {
    int64_t begin = p.begin(e), rows = p.ends[e] - begin;
    if (!p.token) return x + begin * p.d;
    float* out = Buffers::fit(part, rows * p.d);
    for (int64_t r = 0; r < rows; ++r) std::copy_n(x + p.token[begin + r] * p.d, p.d, out + r * p.d);
    return out;
}

void forward(const FeedForward& p, int e, int next, const float* x, float* gate_up, float* y) {
    int64_t begin = p.begin(e);
    int rows = int(p.ends[e] - begin), d = p.d, f = p.f;
    const float* mine = rows_of(p, e, x, buffers().x);
    float *wide = gate_up + begin * 2 * f, *hidden = Buffers::fit(buffers().hidden, size_t(rows) * f);
    scratch().ahead = p.fetch_low(e);
    multiply({mine, d, 1}, {p.up(e), 1, d}, rows, 2 * f, d, {wide, 2 * f, false});
    for (int64_t r = 0; r < rows; ++r) swiglu(wide + r * 2 * f, f, p.scale ? p.scale[begin + r] : 1.0f, hidden + r * f);
    scratch().ahead = p.fetch_up(next);
    multiply({hidden, f, 1}, {p.low(e), 1, f}, rows, d, f, {y + begin * d, d, false});
}

struct Gradients {  // null where none is wanted
    float *x, *gate_up, *down, *scale;
};

// add: to the gradients of weights
void backward(const FeedForward& p, int e, int next, const float* x, const float* gate_up, const float* grad, const Gradients& to, bool add) {
    int64_t begin = p.begin(e);
    int rows = int(p.ends[e] - begin), d = p.d, f = p.f;
    Buffers& b = buffers();
    const float* mine = rows_of(p, e, grad, b.grad);
    float *hidden = Buffers::fit(b.hidden, size_t(rows) * f), *hidden_grad = Buffers::fit(b.hidden_grad, size_t(rows) * f);
    float* wide = Buffers::fit(b.gate_up_grad, size_t(rows) * 2 * f);
    multiply({mine, d, 1}, {p.low(e), f, 1}, rows, f, d, {hidden_grad, f, false});
    for (int64_t r = 0, s = begin; r < rows; ++r, ++s) {
        float slope = swiglu_back(gate_up + s * 2 * f, hidden_grad + r * f, f, p.scale ? p.scale[s] : 1.0f, wide + r * 2 * f, hidden + r * f);
        if (to.scale) to.scale[s] = slope;
    }
    if (to.down) multiply({mine, 1, d}, {hidden, f, 1}, d, f, rows, {to.down + p.set(e) * p.size(), f, add});
    scratch().ahead = p.fetch_up(e);
    if (to.gate_up)
        multiply({wide, 1, 2 * f}, {rows_of(p, e, x, b.x), d, 1}, 2 * f, d, rows, {to.gate_up + p.set(e) * 2 * p.size(), d, add});
    scratch().ahead = p.fetch_low(next);
    if (to.x) multiply({wide, 2 * f, 1}, {p.up(e), d, 1}, rows, d, 2 * f, {to.x + begin * d, d, false});
}

}  // namespace

extern "C" {

// out [m, n] (+)= a [m, k] b [k, n]; rows of out are `out_row` apart, a and b lie anyhow
void ernie_matmul(const float* a, int a_row, int a_column, const float* b, int b_row, int b_column, int m, int n, int k, int add, int threads,
                  float* out, int out_row) {
    View left{a, a_row, a_column}, right{b, b_row, b_column};
    parallel(threads, [&](int part, int parts) {
        int64_t all = std::max(m, n), begin = all * part / parts, count = all * (part + 1) / parts - begin;
        if (m >= n) multiply(left.at(begin, 0), right, count, n, k, {out + begin * out_row, out_row, add != 0});
        else multiply(left, right.at(0, begin), m, count, k, {out + begin, out_row, add != 0});
    });
}

// gate_up_out [S, 2 f] and y [S, d] of S sorted copies of rows of x, or with token null of its S rows; shared: one set of weights
void ernie_ffn_forward(const float* x, const float* gate_up, const float* down, const int64_t* token, const int64_t* ends, const float* scale,
                       int groups, int d, int f, int shared, int threads, float* gate_up_out, float* y) {
    FeedForward p{gate_up, down, token, ends, scale, groups, d, f, shared != 0};
    parallel(threads, [&](int part, int parts) {
        for (int e = part; e < groups; e += parts) forward(p, e, e + parts, x, gate_up_out, y);
    });
}

// grad like what x is; x_grad [S, d] is by copy, and so is scale_grad [S]. Gradients may be null. With shared weights each thread sums
// its own: gate_up_grad [threads, 2 f, d] and down_grad [threads, d, f] come as zeros.
void ernie_ffn_backward(const float* x, const float* gate_up, const float* down, const int64_t* token, const int64_t* ends, const float* scale,
                        int groups, int d, int f, int shared, int threads, const float* gate_up_out, const float* grad, float* x_grad,
                        float* gate_up_grad, float* down_grad, float* scale_grad) {
    FeedForward p{gate_up, down, token, ends, scale, groups, d, f, shared != 0};
    parallel(threads, [&](int part, int parts) {
        int64_t own = shared ? part * p.size() : 0;
        Gradients to{x_grad, gate_up_grad ? gate_up_grad + 2 * own : nullptr, down_grad ? down_grad + own : nullptr, scale_grad};
        for (int e = part; e < groups; e += parts) backward(p, e, e + parts, x, gate_up_out, grad, to, shared && (parts > 1 || e > part));
    });
}

// out[r] = sum of y[place[r, a]] over the a of row r, in their order
void ernie_ffn_combine(const float* y, const int64_t* place, int rows, int active, int d, int threads, float* out) {
    parallel(threads, [&](int part, int parts) {
        for (int64_t r = int64_t(rows) * part / parts; r < int64_t(rows) * (part + 1) / parts; ++r)
            for (int i = 0; i < d; i += LANES) {
                vec sum = {};
                for (int a = 0; a < active; ++a) sum += at(y + place[r * active + a] * d, i, d);
                put(out + r * d, i, d, sum);
            }
    });
}

}
#endif
