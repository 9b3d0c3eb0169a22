// Self-attention over packed sequences with its backward pass, rope included, for training on a CPU.
// Knows nothing about torch, layers or caches. Plain C interface, sizes count elements; inputs and outputs fp32 or bf16 (kind 0
// or 1), all arithmetic fp32. Scores exist one tile at a time: softmax online forwards, recomputed from the row's log-sum
// backwards (FlashAttention-2, arXiv 2307.08691). (Sequence, KV head) pairs are shared among threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr int TILE = 64;  // a score tile is TILE x TILE: with its operands it stays in the second-level cache

// c [M, 16 N] (+)= a [M, k] b [k, 16 N]; element (r, i) of a is at a[r * row + i * column]
template <int M, int N> void block(const float* a, int row, int column, const float* b, int ldb, int k, float* c, int ldc, bool add) {
    vec sums[M][N];
    for (int r = 0; r < M; ++r)
        for (int j = 0; j < N; ++j) sums[r][j] = add ? load(c + r * ldc + j * LANES) : vec{};
    for (int i = 0; i < k; ++i, b += ldb) {
        vec right[N];
        for (int j = 0; j < N; ++j) right[j] = load(b + j * LANES);
        for (int r = 0; r < M; ++r) {
            float left = a[r * row + i * column];
            for (int j = 0; j < N; ++j) sums[r][j] += left * right[j];
        }
    }
    for (int r = 0; r < M; ++r)
        for (int j = 0; j < N; ++j) store(c + r * ldc + j * LANES, sums[r][j]);
}

struct Left {  // a matrix read element by element: either way round
    const float* data;
    int row, column;
};

template <int N> void columns(Left a, int m, const float* b, int ldb, int k, float* c, int ldc, bool add) {
    constexpr int M = 6;  // 6 x 4 sums and 4 operands fill the 32 vector registers
    int r = 0;
    for (; r + M <= m; r += M) block<M, N>(a.data + r * a.row, a.row, a.column, b, ldb, k, c + r * ldc, ldc, add);
    const float* rest = a.data + r * a.row;
    switch (m - r) {
        case 1: return block<1, N>(rest, a.row, a.column, b, ldb, k, c + r * ldc, ldc, add);
        case 2: return block<2, N>(rest, a.row, a.column, b, ldb, k, c + r * ldc, ldc, add);
        case 3: return block<3, N>(rest, a.row, a.column, b, ldb, k, c + r * ldc, ldc, add);
        case 4: return block<4, N>(rest, a.row, a.column, b, ldb, k, c + r * ldc, ldc, add);
        case 5: return block<5, N>(rest, a.row, a.column, b, ldb, k, c + r * ldc, ldc, add);
    }
}

// c [m, n] (+)= a [m, k] b [k, n], n a multiple of LANES
void multiply(Left a, int m, const float* b, int ldb, int k, float* c, int ldc, int n, bool add) {
    int j = 0;
    for (; j + 4 * LANES <= n; j += 4 * LANES) columns<4>(a, m, b + j, ldb, k, c + j, ldc, add);
    switch ((n - j) / LANES) {
        case 1: return columns<1>(a, m, b + j, ldb, k, c + j, ldc, add);
        case 2: return columns<2>(a, m, b + j, ldb, k, c + j, ldc, add);
        case 3: return columns<3>(a, m, b + j, ldb, k, c + j, ldc, add);
    }
}

struct Shape {
    int query, kv, dim;      // heads, KV heads, elements of a head
    int width() const { return (query + 2 * kv) * dim; }
    int padded() const { return (dim + LANES - 1) / LANES * LANES; }
};

// One head of `count` rows, turned by the rope table unless it is null, times scale; padded with zeros to `ld`
template <class T> void read_head(const T* x, int stride, int count, int dim, const float* turns, float scale, float* out, int ld) {
    for (int r = 0; r < count; ++r, x += stride, out += ld) {
        for (int i = 0; i < dim; ++i) out[i] = widen(x[i]) * scale;
        std::fill(out + dim, out + ld, 0.0f);
        if (!turns) continue;
        const float* turn = turns + int64_t(r) * dim;
        for (int i = 0; i < dim; i += 2) {
            float a = out[i], b = out[i + 1];
            out[i] = a * turn[i] - b * turn[i + 1];
            out[i + 1] = a * turn[i + 1] + b * turn[i];
        }
    }
}

// A gradient back through the same turn and scale to its place
template <class T> void write_head(const float* x, int ld, int count, int dim, const float* turns, float scale, T* out, int stride) {
    for (int r = 0; r < count; ++r, x += ld, out += stride) {
        if (!turns) {
            for (int i = 0; i < dim; ++i) narrow(x[i] * scale, out[i]);
            continue;
        }
        const float* turn = turns + int64_t(r) * dim;
        for (int i = 0; i < dim; i += 2) {
            narrow((x[i] * turn[i] + x[i + 1] * turn[i + 1]) * scale, out[i]);
            narrow((x[i + 1] * turn[i] - x[i] * turn[i + 1]) * scale, out[i + 1]);
        }
    }
}

// Tile by tile, so that each tile's transpose [ld, TILE] is one run of memory; rows past the end are zero
void transpose(const float* x, int ld, int count, float* out) {
    for (int start = 0; start < count; start += TILE, out += ld * TILE) {
        int rows = std::min(TILE, count - start);
        if (rows < TILE) std::fill(out, out + ld * TILE, 0.0f);
        for (int r = 0; r < rows; ++r)
            for (int i = 0; i < ld; ++i) out[i * TILE + r] = x[int64_t(start + r) * ld + i];
    }
}

struct Scratch {  // grows to the longest sequence seen, per thread
    std::vector<float> keys, values, keys_t, values_t, keys_grad, values_grad, query, out, out_grad, query_grad, scores, slopes;
    void fit(int length, int ld) {
        size_t rows = size_t(length + TILE - 1) / TILE * TILE;
        for (auto* part : {&keys, &values, &keys_t, &values_t, &keys_grad, &values_grad}) part->resize(rows * ld);
        for (auto* part : {&query, &out, &out_grad, &query_grad}) part->resize(size_t(TILE) * ld);
        scores.resize(TILE * TILE);
        slopes.resize(TILE * TILE);
    }
};

struct Task {  // one sequence and one of its KV heads
    Shape shape;
    int64_t start;
    int length, kv_head;
    bool causal;
    const float* turns;  // of the sequence's first row, [length, dim]: cos, sin of each pair; or null
};

template <class T> void read_keys_and_values(const Task& t, const T* qkv, Scratch& s, bool transposed_values) {
    Shape n = t.shape;
    int ld = n.padded(), width = n.width();
    const T* k = qkv + t.start * width + (n.query + t.kv_head) * n.dim;
    read_head(k, width, t.length, n.dim, t.turns, 1.0f, s.keys.data(), ld);
    read_head(k + n.kv * n.dim, width, t.length, n.dim, nullptr, 1.0f, s.values.data(), ld);
    transpose(s.keys.data(), ld, t.length, s.keys_t.data());
    if (transposed_values) transpose(s.values.data(), ld, t.length, s.values_t.data());
}

// How many columns of the tile that begins at key `from` the query row `row` may see
int visible(const Task& t, int row, int from) {
    int end = t.causal ? std::min(t.length, row + 1) : t.length;
    return std::clamp(end - from, 0, TILE);
}

// One tile of scores [rows, TILE] becomes weights; top, sum and the running output follow. seen(r): columns that row r may see.
template <class Seen> void soften(float* score, int rows, int ld, float* top, float* sum, float* out, Seen seen) {
    for (int r = 0; r < rows; ++r) {
        float* row = score + r * TILE;
        for (int i = seen(r); i < TILE; ++i) row[i] = -INFINITY;
        vec best = load(row);
        for (int i = LANES; i < TILE; i += LANES) {
            vec next = load(row + i);
            best = best > next ? best : next;
        }
        float high = top[r];
        for (int lane = 0; lane < LANES; ++lane) high = std::max(high, best[lane]);
        float shrink = top[r] == high ? 1.0f : std::exp(top[r] - high);
        vec mass = {};
        for (int i = 0; i < TILE; i += LANES) {
            vec p = exponential(load(row + i) - high);
            store(row + i, p);
            mass += p;
        }
        sum[r] = sum[r] * shrink + total(mass);
        top[r] = high;
        if (shrink != 1.0f)
            for (int i = 0; i < ld; i += LANES) store(out + r * ld + i, load(out + r * ld + i) * shrink);
    }
}

template <class T> void forward_head(const Task& t, const T* qkv, int head, Scratch& s, T* out, float* logsums) {
    Shape n = t.shape;
    int ld = n.padded(), width = n.width();
    float* score = s.scores.data();
    float* o = s.out.data();
    for (int begin = 0; begin < t.length; begin += TILE) {
        int rows = std::min(TILE, t.length - begin);
        const float* turns = t.turns ? t.turns + int64_t(begin) * n.dim : nullptr;
        read_head(qkv + (t.start + begin) * width + head * n.dim, width, rows, n.dim, turns, 1.0f / std::sqrt(float(n.dim)),
                  s.query.data(), ld);
        float top[TILE], sum[TILE];
        std::fill(top, top + TILE, -INFINITY);
        std::fill(sum, sum + TILE, 0.0f);
        std::fill(o, o + rows * ld, 0.0f);
        int last = t.causal ? begin + rows : t.length;
        for (int from = 0; from < last; from += TILE) {
            multiply({s.query.data(), ld, 1}, rows, s.keys_t.data() + int64_t(from) * ld, TILE, ld, score, TILE, TILE, false);
            soften(score, rows, ld, top, sum, o, [&](int r) { return visible(t, begin + r, from); });
            int columns = std::min(TILE, last - from);
            multiply({score, TILE, 1}, rows, s.values.data() + int64_t(from) * ld, ld, columns, o, ld, ld, true);
        }
        for (int r = 0; r < rows; ++r) {
            T* to = out + ((t.start + begin + r) * n.query + head) * n.dim;
            for (int i = 0; i < n.dim; ++i) narrow(o[r * ld + i] / sum[r], to[i]);
            logsums[(t.start + begin + r) * n.query + head] = top[r] + std::log(sum[r]);
        }
    }
}

template <class T> struct Gradients {
    const T *out, *out_grad;
    const float* logsums;
    T* qkv_grad;
};

template <class T> void backward_head(const Task& t, const T* qkv, int head, Scratch& s, const Gradients<T>& g) {
    Shape n = t.shape;
    int ld = n.padded(), width = n.width();
    float scale = 1.0f / std::sqrt(float(n.dim)), *score = s.scores.data(), *slope = s.slopes.data();
    for (int begin = 0; begin < t.length; begin += TILE) {
        int rows = std::min(TILE, t.length - begin);
        const float* turns = t.turns ? t.turns + int64_t(begin) * n.dim : nullptr;
        int64_t place = ((t.start + begin) * n.query + head) * n.dim;
        read_head(qkv + (t.start + begin) * width + head * n.dim, width, rows, n.dim, turns, scale, s.query.data(), ld);
        read_head(g.out + place, n.query * n.dim, rows, n.dim, nullptr, 1.0f, s.out.data(), ld);
        read_head(g.out_grad + place, n.query * n.dim, rows, n.dim, nullptr, 1.0f, s.out_grad.data(), ld);
        float logsum[TILE], mean[TILE];
        for (int r = 0; r < rows; ++r) {
            vec sum = {};
            for (int i = 0; i < ld; i += LANES) sum += load(s.out.data() + r * ld + i) * load(s.out_grad.data() + r * ld + i);
            mean[r] = total(sum);
            logsum[r] = g.logsums[(t.start + begin + r) * n.query + head];
        }
        int last = t.causal ? begin + rows : t.length;
        for (int from = 0; from < last; from += TILE) {
            int64_t tile = int64_t(from) * ld;
            int columns = std::min(TILE, last - from);
            multiply({s.query.data(), ld, 1}, rows, s.keys_t.data() + tile, TILE, ld, score, TILE, TILE, false);
            multiply({s.out_grad.data(), ld, 1}, rows, s.values_t.data() + tile, TILE, ld, slope, TILE, TILE, false);
            for (int r = 0; r < rows; ++r) {
                float *p = score + r * TILE, *d = slope + r * TILE;
                for (int i = visible(t, begin + r, from); i < TILE; ++i) p[i] = -INFINITY;
                for (int i = 0; i < TILE; i += LANES) {
                    vec weight = exponential(load(p + i) - logsum[r]);
                    store(p + i, weight);
                    store(d + i, weight * (load(d + i) - mean[r]));
                }
            }
            multiply({score, 1, TILE}, columns, s.out_grad.data(), ld, rows, s.values_grad.data() + tile, ld, ld, true);
            multiply({slope, 1, TILE}, columns, s.query.data(), ld, rows, s.keys_grad.data() + tile, ld, ld, true);
            multiply({slope, TILE, 1}, rows, s.keys.data() + tile, ld, columns, s.query_grad.data(), ld, ld, from > 0);
        }
        write_head(s.query_grad.data(), ld, rows, n.dim, turns, scale, g.qkv_grad + (t.start + begin) * width + head * n.dim, width);
    }
}

Scratch& scratch(const Task& t) {
    static thread_local Scratch s;
    s.fit(t.length, t.shape.padded());
    return s;
}

template <class T> void forward(const Task& t, const T* qkv, T* out, float* logsums) {
    Scratch& s = scratch(t);
    read_keys_and_values(t, qkv, s, false);
    int group = t.shape.query / t.shape.kv;
    for (int i = 0; i < group; ++i) forward_head(t, qkv, t.kv_head * group + i, s, out, logsums);
}

template <class T> void backward(const Task& t, const T* qkv, const Gradients<T>& g) {
    Scratch& s = scratch(t);
    Shape n = t.shape;
    int ld = n.padded(), width = n.width(), group = n.query / n.kv;
    read_keys_and_values(t, qkv, s, true);
    std::fill(s.keys_grad.begin(), s.keys_grad.end(), 0.0f);
    std::fill(s.values_grad.begin(), s.values_grad.end(), 0.0f);
    for (int i = 0; i < group; ++i) backward_head(t, qkv, t.kv_head * group + i, s, g);
    T* k = g.qkv_grad + t.start * width + (n.query + t.kv_head) * n.dim;
    write_head(s.keys_grad.data(), ld, t.length, n.dim, t.turns, 1.0f, k, width);
    write_head(s.values_grad.data(), ld, t.length, n.dim, nullptr, 1.0f, k + n.kv * n.dim, width);
}

// The new tokens of one sequence against all it has in its pages, for one KV head. q [rows, h, dim] is turned already, keys and values
// are [pages, page_size, j, dim], and the last of the rows sits at position length - 1.
template <class T> struct Paged {
    Shape shape;
    const T *q, *keys, *values;
    const int64_t* pages;
    int page_size, rows, length, kv_head;
    T* out;
};

// Keys or values of `count` tokens from position `from`, to fp32 rows of `ld`
template <class T> void read_pages(const Paged<T>& p, const T* base, int from, int count, float* out, int ld) {
    int width = p.shape.kv * p.shape.dim;
    for (int t = from; t < from + count; ++t, out += ld) {
        int64_t place = p.pages[t / p.page_size] * p.page_size + t % p.page_size;
        read_head(base + place * width + p.kv_head * p.shape.dim, 0, 1, p.shape.dim, nullptr, 1.0f, out, ld);
    }
}

// Rows of a tile are (token, head of the group) pairs, so that a short chunk still fills it; each key is read once for all heads.
template <class T> void paged(const Paged<T>& p) {
    static thread_local Scratch s;
    Shape n = p.shape;
    int ld = n.padded(), group = n.query / n.kv, pairs = p.rows * group, first = p.length - p.rows;
    s.fit(TILE, ld);
    float *score = s.scores.data(), *out = s.out.data(), scale = 1.0f / std::sqrt(float(n.dim));
    auto place = [&](int pair) { return (int64_t(pair / group) * n.query + p.kv_head * group + pair % group) * n.dim; };
    for (int begin = 0; begin < pairs; begin += TILE) {
        int rows = std::min(TILE, pairs - begin), last = first + (begin + rows - 1) / group + 1;
        for (int r = 0; r < rows; ++r) read_head(p.q + place(begin + r), 0, 1, n.dim, nullptr, scale, s.query.data() + r * ld, ld);
        float top[TILE], sum[TILE];
        std::fill(top, top + TILE, -INFINITY);
        std::fill(sum, sum + TILE, 0.0f);
        std::fill(out, out + rows * ld, 0.0f);
        for (int from = 0; from < last; from += TILE) {
            int columns = std::min(TILE, last - from);
            read_pages(p, p.keys, from, columns, s.keys.data(), ld);
            read_pages(p, p.values, from, columns, s.values.data(), ld);
            transpose(s.keys.data(), ld, columns, s.keys_t.data());
            multiply({s.query.data(), ld, 1}, rows, s.keys_t.data(), TILE, ld, score, TILE, TILE, false);
            auto seen = [&](int r) { return std::clamp(first + (begin + r) / group + 1 - from, 0, columns); };
            soften(score, rows, ld, top, sum, out, seen);
            multiply({score, TILE, 1}, rows, s.values.data(), ld, columns, out, ld, ld, true);
        }
        for (int r = 0; r < rows; ++r)
            for (int i = 0; i < n.dim; ++i) narrow(out[r * ld + i] / sum[r], p.out[place(begin + r) + i]);
    }
}

template <class T>
void paged_sequences(Paged<T> p, const int64_t* borders, const int64_t* lengths, const int64_t* table, int sequences, int num_pages, int threads) {
    parallel(threads, [&](int part, int parts) {
        for (int pair = part; pair < sequences * p.shape.kv; pair += parts) {
            int sequence = pair / p.shape.kv;
            int64_t start = borders[sequence] * p.shape.query * p.shape.dim;
            Paged<T> one = p;
            one.q += start;
            one.out += start;
            one.pages = table + int64_t(sequence) * num_pages;
            one.rows = int(borders[sequence + 1] - borders[sequence]);
            one.length = int(lengths[sequence]);
            one.kv_head = pair % p.shape.kv;
            if (one.rows) paged(one);
        }
    });
}

struct Packed {
    Shape shape;
    const int64_t* borders;
    int sequences, causal;
    const float* turns;
    int threads;
};

// Calls run for every pair of sequence and KV head
template <class F> void each(const Packed& p, F run) {
    parallel(p.threads, [&](int part, int parts) {
        for (int pair = part; pair < p.sequences * p.shape.kv; pair += parts) {
            int sequence = pair / p.shape.kv;
            int64_t start = p.borders[sequence];
            Task task{p.shape, start, int(p.borders[sequence + 1] - start), pair % p.shape.kv, p.causal != 0,
                      p.turns ? p.turns + start * p.shape.dim : nullptr};
            if (task.length) run(task);
        }
    });
}

}  // namespace

extern "C" {

// qkv [T, (h + 2 j) dim] -> out [T, h dim], logsums [T, h]
void ernie_attention_forward(int kind, const void* qkv, const float* turns, int h, int j, int dim, const int64_t* borders, int sequences,
                             int causal, int threads, void* out, float* logsums) {
    Packed p{{h, j, dim}, borders, sequences, causal, turns, threads};
    if (kind) each(p, [&](const Task& t) { forward(t, (const bf16*)qkv, (bf16*)out, logsums); });
    else each(p, [&](const Task& t) { forward(t, (const float*)qkv, (float*)out, logsums); });
}

// q [borders[sequences], h, dim], turned; keys, values [pages, page_size, j, dim]; table [sequences, num_pages]; out like q
void ernie_attention_paged(int kind, const void* q, const void* keys, const void* values, int h, int j, int dim, const int64_t* borders,
                           const int64_t* lengths, const int64_t* table, int sequences, int num_pages, int page_size, int threads, void* out) {
    if (kind) {
        Paged<bf16> p{{h, j, dim}, (const bf16*)q, (const bf16*)keys, (const bf16*)values, nullptr, page_size, 0, 0, 0, (bf16*)out};
        paged_sequences(p, borders, lengths, table, sequences, num_pages, threads);
    } else {
        Paged<float> p{{h, j, dim}, (const float*)q, (const float*)keys, (const float*)values, nullptr, page_size, 0, 0, 0, (float*)out};
        paged_sequences(p, borders, lengths, table, sequences, num_pages, threads);
    }
}

// and back: qkv_grad [T, (h + 2 j) dim] from out_grad [T, h dim]
void ernie_attention_backward(int kind, const void* qkv, const float* turns, int h, int j, int dim, const int64_t* borders, int sequences,
                              int causal, int threads, const void* out, const float* logsums, const void* out_grad, void* qkv_grad) {
    Packed p{{h, j, dim}, borders, sequences, causal, turns, threads};
    if (kind) {
        Gradients<bf16> g{(const bf16*)out, (const bf16*)out_grad, logsums, (bf16*)qkv_grad};
        each(p, [&](const Task& t) { backward(t, (const bf16*)qkv, g); });
    } else {
        Gradients<float> g{(const float*)out, (const float*)out_grad, logsums, (float*)qkv_grad};
        each(p, [&](const Task& t) { backward(t, (const float*)qkv, g); });
    }
}

}
