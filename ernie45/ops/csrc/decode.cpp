// Kernels of a decode step on a CPU: few rows, so time is reading weights; each weight is read once for all rows.
// Knows nothing about torch or about layers. Plain C interface (no torch headers: compiles in seconds). Sizes count elements;
// activations, weights and KV pages are all fp32 or all bf16 (kind 0 or 1), sums fp32. A row's result does not depend on how many
// rows or threads there are: every sum runs in one order.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "decode_attention.h"
#include "threads.h"
#include "vectors.h"

namespace {

constexpr int MAX_ROWS = 8;   // rows of x in one pass
constexpr int AHEAD = 4096;   // bytes of weights fetched ahead of use
constexpr int BLOCK = 32;     // weight rows that stay in cache while all rows of x pass

// y[r * ldy + j] = x[r] . w[j] for M rows of x and N rows of w. For one or two rows of x the weights are read strictly in order:
// several rows side by side would halve the bandwidth that one core gets. For more, sums are what takes time, and two rows of w
// share what is read of x.
template <int M, int N, class T> void tile(const T* x, const T* w, int k, float* y, int64_t ldy) {
    typedef Products<T> P;
    P sums[N][M];
    int i = 0;
    for (; i + P::STEP <= k; i += P::STEP) {
        typename P::Operand weights[N];
        for (int j = 0; j < N; ++j) {
            weights[j] = P::operand(w + int64_t(j) * k + i);
            __builtin_prefetch((const char*)(w + int64_t(j) * k + i) + AHEAD);
        }
#pragma GCC unroll 8
        for (int r = 0; r < M; ++r) {
            typename P::Operand row = P::operand(x + int64_t(r) * k + i);
            for (int j = 0; j < N; ++j) sums[j][r].step(row, weights[j]);
        }
    }
    for (int j = 0; j < N; ++j)
        for (int r = 0; r < M; ++r) {
            float sum = sums[j][r].sum();
            for (int t = i; t < k; ++t) sum += widen(x[int64_t(r) * k + t]) * widen(w[int64_t(j) * k + t]);
            y[r * ldy + j] = sum;
        }
}

template <int M, class T> void tiles(const T* x, const T* w, int k, int n, float* y, int64_t ldy) {
    int j = 0;
    if (M > 2 && (k >= 1024 || sizeof(T) == 2))
        for (; j + 2 <= n; j += 2) tile<M, 2>(x, w + int64_t(j) * k, k, y + j, ldy);
    for (; j < n; ++j) tile<M, 1>(x, w + int64_t(j) * k, k, y + j, ldy);
}

template <class T> void rows_of_tiles(int m, const T* x, const T* w, int k, int n, float* y, int64_t ldy) {
    switch (m) {
        case 1: return tiles<1>(x, w, k, n, y, ldy);
        case 2: return tiles<2>(x, w, k, n, y, ldy);
        case 3: return tiles<3>(x, w, k, n, y, ldy);
        case 4: return tiles<4>(x, w, k, n, y, ldy);
        case 5: return tiles<5>(x, w, k, n, y, ldy);
        case 6: return tiles<6>(x, w, k, n, y, ldy);
        case 7: return tiles<7>(x, w, k, n, y, ldy);
        default: return tiles<8>(x, w, k, n, y, ldy);
    }
}

// y [m, from ... to) of x [m, k] w [n, k]^T
template <class T> void linear(const T* x, int m, const T* w, int k, int from, int to, float* y, int64_t ldy) {
    for (int j = from; j < to; j += BLOCK)
        for (int r = 0; r < m; r += MAX_ROWS)
            rows_of_tiles(std::min(m - r, MAX_ROWS), x + int64_t(r) * k, w + int64_t(j) * k, k, std::min(to - j, BLOCK), y + r * ldy + j, ldy);
}

// The share of n things that a thread takes, in whole blocks
struct Share {
    int from, to;
    Share(int n, int part, int parts) {
        int64_t blocks = (n + BLOCK - 1) / BLOCK;
        from = int(std::min<int64_t>(n, blocks * part / parts * BLOCK));
        to = int(std::min<int64_t>(n, blocks * (part + 1) / parts * BLOCK));
    }
};

// hidden [f] = silu(gate) * up * scale, from gate_up [2f]
template <class T> void swiglu(const float* gate_up, int f, float scale, T* hidden) {
    const float *gate = gate_up, *up = gate_up + f;
    int i = 0;
    for (; i + LANES <= f; i += LANES) store(hidden + i, load(gate + i) * sigmoid(load(gate + i)) * load(up + i) * scale);
    for (; i < f; ++i) narrow(gate[i] / (1.0f + std::exp(-gate[i])) * up[i] * scale, hidden[i]);
}

struct Expert {  // one that has rows: rows `first` to `first + count` of the sorted list are its
    int64_t id;
    int first, count;
};

template <class T> struct Scratch {  // grows to the largest step seen
    std::vector<float> gate_up, part, sums, scale;
    std::vector<T> rows, hidden;
    std::vector<int64_t> members;
    std::vector<Expert> experts;
};

template <class T> struct Experts {
    const T *gate_up, *down;
    int d, f;
};

// y [m, d] = sum over a row's experts of scale * down(silu(gate x) * up x). Two sweeps over the weights of all experts in use,
// each shared out evenly; a row's experts are added up in the order of their ids.
template <class T> void feed_forward(const Experts<T>& e, Scratch<T>& s, int m, int threads, T* y) {
    int f = e.f, d = e.d, rows = int(s.members.size()), used = int(s.experts.size());
    s.gate_up.resize(size_t(rows) * 2 * f);
    s.hidden.resize(size_t(rows) * f);
    s.part.resize(size_t(rows) * d);
    s.sums.assign(size_t(m) * d, 0.0f);
    parallel(threads, [&](int part, int parts) {
        Share share(used * 2 * f, part, parts);  // the gate and up rows of all experts, one after the other
        for (int at = share.from; at < share.to;) {
            const Expert& expert = s.experts[at / (2 * f)];
            int from = at % (2 * f), to = std::min(2 * f, from + share.to - at);
            linear(s.rows.data() + int64_t(expert.first) * d, expert.count, e.gate_up + expert.id * 2 * f * d, d, from, to,
                   s.gate_up.data() + int64_t(expert.first) * 2 * f, 2 * f);
            at += to - from;
        }
    });
    for (int r = 0; r < rows; ++r) swiglu(s.gate_up.data() + int64_t(r) * 2 * f, f, s.scale[r], s.hidden.data() + int64_t(r) * f);
    parallel(threads, [&](int part, int parts) {
        Share share(d, part, parts);
        for (const Expert& expert : s.experts) {
            linear(s.hidden.data() + int64_t(expert.first) * f, expert.count, e.down + expert.id * d * f, f, share.from, share.to,
                   s.part.data() + int64_t(expert.first) * d, d);
            for (int r = expert.first; r < expert.first + expert.count; ++r)
                for (int i = share.from; i < share.to; ++i) s.sums[s.members[r] * d + i] += s.part[int64_t(r) * d + i];
        }
    });
    round_to(s.sums.data(), int64_t(m) * d, y);
}

template <class T> Scratch<T>& scratch() {
    static thread_local Scratch<T> s;
    s.rows.clear();
    s.scale.clear();
    s.members.clear();
    s.experts.clear();
    return s;
}

// experts, weights [m, a]
template <class T>
void moe(const T* x, int m, const int64_t* experts, const float* weights, int a, const Experts<T>& e, int num_experts, int threads, T* y) {
    Scratch<T>& s = scratch<T>();
    for (int64_t expert = 0; expert < num_experts; ++expert) {
        int first = int(s.members.size());
        for (int pair = 0; pair < m * a; ++pair)
            if (experts[pair] == expert) {
                s.members.push_back(pair / a);
                s.scale.push_back(weights[pair]);
                s.rows.insert(s.rows.end(), x + int64_t(pair / a) * e.d, x + int64_t(pair / a + 1) * e.d);
            }
        if (int count = int(s.members.size()) - first) s.experts.push_back({expert, first, count});
    }
    feed_forward(e, s, m, threads, y);
}

template <class T> void ffn(const T* x, int m, const Experts<T>& e, int threads, T* y) {
    Scratch<T>& s = scratch<T>();
    s.rows.assign(x, x + int64_t(m) * e.d);
    s.scale.assign(m, 1.0f);
    for (int r = 0; r < m; ++r) s.members.push_back(r);
    s.experts.push_back({0, 0, m});
    feed_forward(e, s, m, threads, y);
}

template <class T> void linear(const T* x, int m, const T* w, int k, int n, int threads, T* y) {
    static thread_local std::vector<float> wide;
    wide.resize(size_t(m) * n);
    float* out = wide.data();
    parallel(threads, [&](int part, int parts) {
        Share share(n, part, parts);
        linear(x, m, w, k, share.from, share.to, out, n);
    });
    round_to(out, int64_t(m) * n, y);
}

}  // namespace

extern "C" {

void ernie_linear(int kind, const void* x, int m, const void* w, int k, int n, int threads, void* y) {
    if (kind) linear((const bf16*)x, m, (const bf16*)w, k, n, threads, (bf16*)y);
    else linear((const float*)x, m, (const float*)w, k, n, threads, (float*)y);
}

void ernie_ffn(int kind, const void* x, int m, int d, const void* gate_up, const void* down, int f, int threads, void* y) {
    if (kind) ffn((const bf16*)x, m, Experts<bf16>{(const bf16*)gate_up, (const bf16*)down, d, f}, threads, (bf16*)y);
    else ffn((const float*)x, m, Experts<float>{(const float*)gate_up, (const float*)down, d, f}, threads, (float*)y);
}

void ernie_moe(int kind, const void* x, int m, int d, const int64_t* experts, const float* weights, int a, const void* gate_up,
               const void* down, int e, int f, int threads, void* y) {
    if (kind)
        moe((const bf16*)x, m, experts, weights, a, Experts<bf16>{(const bf16*)gate_up, (const bf16*)down, d, f}, e, threads, (bf16*)y);
    else moe((const float*)x, m, experts, weights, a, Experts<float>{(const float*)gate_up, (const float*)down, d, f}, e, threads, (float*)y);
}

// logits [m, e] out; chosen experts and weights [m, a] out: softmax, top-a of (p + bias), p / max(sum, norm_min). All fp32.
void ernie_route(const float* x, int m, int d, const float* w, const float* bias, int e, int a, float norm_min, float* logits,
                 int64_t* experts, float* weights) {
    static thread_local std::vector<float> p;
    p.resize(e);
    linear(x, m, w, d, 0, e, logits, e);
    for (int r = 0; r < m; ++r) {
        const float* z = logits + int64_t(r) * e;
        float top = *std::max_element(z, z + e), sum = 0, mass = 0;
        for (int i = 0; i < e; ++i) sum += p[i] = std::exp(z[i] - top);
        for (int i = 0; i < e; ++i) p[i] /= sum;
        for (int c = 0; c < a; ++c) {
            int64_t best = -1, *row = experts + int64_t(r) * a;
            for (int64_t i = 0; i < e; ++i)
                if (std::find(row, row + c, i) == row + c && (best < 0 || p[i] + bias[i] > p[best] + bias[best])) best = i;
            row[c] = best;
            mass += weights[int64_t(r) * a + c] = p[best];
        }
        for (int c = 0; c < a; ++c) weights[int64_t(r) * a + c] /= std::max(mass, norm_min);
    }
}

void ernie_attention(int kind, const void* qkv, int m, int h, int j, int dim, const float* turns, void* keys, void* values,
                     const int64_t* slots, const int64_t* table, int num_pages, int page_size, const int64_t* lengths, int threads, void* out) {
    if (kind) {
        Pages<bf16> p{(bf16*)keys, (bf16*)values, slots, table, lengths, num_pages, page_size};
        attention((const bf16*)qkv, m, {h, j, dim}, turns, p, threads, (bf16*)out);
    } else {
        Pages<float> p{(float*)keys, (float*)values, slots, table, lengths, num_pages, page_size};
        attention((const float*)qkv, m, {h, j, dim}, turns, p, threads, (float*)out);
    }
}

}
