// Kernels of a decode step on a CPU: few rows, so time is reading weights; each weight is read once for all rows.
// Knows nothing about torch or about layers. Plain C interface (no torch headers: compiles in seconds). Sizes count elements;
// activations are fp32, weights and KV pages fp32 or bf16 (kind 0 or 1). One thread: the caller splits work, if at all.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vectors.h"

namespace {

template <class W> float dot(const float* x, const W* w, int k) {
    vec sums = {};
    int i = 0;
    for (; i + LANES <= k; i += LANES) sums += load(x + i) * load(w + i);
    float sum = total(sums);
    for (; i < k; ++i) sum += x[i] * widen(w[i]);
    return sum;
}

constexpr int MAX_ROWS = 8;   // rows of x in one pass
constexpr int AHEAD = 2048;   // weights fetched ahead of use
constexpr int BLOCK = 32;     // weight rows that stay in cache while all rows of x pass

// y[r * ldy + j] = x[r] . w[j] for M rows and n weight rows. Weights are read strictly in order: several rows side by side
// would share register loads of x, but halve the bandwidth that one core gets.
template <int M, class W> void tile(const float* x, const W* w, int k, int n, float* y, int ldy) {
    constexpr int U = M <= 2 ? 4 : 1;
    for (int j = 0; j < n; ++j, w += k) {
        vec sums[U][M] = {};
        int i = 0;
        for (; i + U * LANES <= k; i += U * LANES)
#pragma GCC unroll 4
            for (int u = 0; u < U; ++u) {
                vec weights = load(w + i + u * LANES);
                __builtin_prefetch(w + i + u * LANES + AHEAD);
#pragma GCC unroll 8
                for (int r = 0; r < M; ++r) sums[u][r] += weights * load(x + int64_t(r) * k + i + u * LANES);
            }
        for (; i + LANES <= k; i += LANES) {
            vec weights = load(w + i);
            for (int r = 0; r < M; ++r) sums[0][r] += weights * load(x + int64_t(r) * k + i);
        }
#pragma GCC unroll 8
        for (int r = 0; r < M; ++r) {
            vec all = sums[0][r];
#pragma GCC unroll 4
            for (int u = 1; u < U; ++u) all += sums[u][r];
            float sum = total(all);
            for (int t = i; t < k; ++t) sum += x[int64_t(r) * k + t] * widen(w[t]);
            y[int64_t(r) * ldy + j] = sum;
        }
    }
}

template <class W> void rows_of_tile(int m, const float* x, const W* w, int k, int n, float* y, int ldy) {
    switch (m) {
        case 1: return tile<1>(x, w, k, n, y, ldy);
        case 2: return tile<2>(x, w, k, n, y, ldy);
        case 3: return tile<3>(x, w, k, n, y, ldy);
        case 4: return tile<4>(x, w, k, n, y, ldy);
        case 5: return tile<5>(x, w, k, n, y, ldy);
        case 6: return tile<6>(x, w, k, n, y, ldy);
        case 7: return tile<7>(x, w, k, n, y, ldy);
        default: return tile<8>(x, w, k, n, y, ldy);
    }
}

// y [m, n] = x [m, k] w [n, k]^T
template <class W> void linear(const float* x, int m, const W* w, int k, int n, float* y) {
    for (int j = 0; j < n; j += BLOCK)
        for (int r = 0; r < m; r += MAX_ROWS)
            rows_of_tile(std::min(m - r, MAX_ROWS), x + int64_t(r) * k, w + int64_t(j) * k, k, std::min(n - j, BLOCK),
                         y + int64_t(r) * n + j, n);
}

// hidden [m, f] = silu(gate) * up * scale[r], from gate_up [m, 2f]; no scale means 1
void swiglu(const float* gate_up, int m, int f, const float* scale, float* hidden) {
    for (int r = 0; r < m; ++r) {
        const float *gate = gate_up + int64_t(r) * 2 * f, *up = gate + f;
        float factor = scale ? scale[r] : 1.0f;
        float* out = hidden + int64_t(r) * f;
        int i = 0;
        for (; i + LANES <= f; i += LANES) store(out + i, load(gate + i) * sigmoid(load(gate + i)) * load(up + i) * factor);
        for (; i < f; ++i) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i] * factor;
    }
}

struct Scratch {  // grows to the largest step seen, per thread
    std::vector<float> gate_up, hidden, rows, part, scale;
    std::vector<int64_t> members;
};

Scratch& scratch(int m, int d, int f) {
    static thread_local Scratch s;
    s.gate_up.resize(size_t(m) * 2 * f);
    s.hidden.resize(size_t(m) * f);
    s.rows.resize(size_t(m) * d);
    s.part.resize(size_t(m) * d);
    s.scale.resize(m);
    s.members.resize(m);
    return s;
}

template <class W> void ffn(const float* x, int m, int d, const W* gate_up, const W* down, int f, const float* scale, Scratch& s, float* y) {
    linear(x, m, gate_up, d, 2 * f, s.gate_up.data());
    swiglu(s.gate_up.data(), m, f, scale, s.hidden.data());
    linear(s.hidden.data(), m, down, f, d, y);
}

// y [m, d] = sum over the chosen experts of weight * down(silu(gate x) * up x); experts, weights [m, a]
template <class W>
void moe(const float* x, int m, int d, const int64_t* experts, const float* weights, int a, const W* gate_up, const W* down, int e, int f,
         float* y) {
    Scratch& s = scratch(m, d, f);
    std::fill(y, y + int64_t(m) * d, 0.0f);
    for (int64_t expert = 0; expert < e; ++expert) {
        int count = 0;
        for (int pair = 0; pair < m * a; ++pair)
            if (experts[pair] == expert) {
                s.members[count] = pair / a;
                s.scale[count] = weights[pair];
                std::memcpy(s.rows.data() + int64_t(count++) * d, x + int64_t(pair / a) * d, size_t(d) * 4);
            }
        if (!count) continue;
        ffn(s.rows.data(), count, d, gate_up + expert * 2 * f * d, down + expert * d * f, f, s.scale.data(), s, s.part.data());
        for (int q = 0; q < count; ++q)
            for (int i = 0; i < d; ++i) y[s.members[q] * d + i] += s.part[int64_t(q) * d + i];
    }
}

struct Heads {
    int query, kv, dim;
};

// Rope on q and k of qkv [m, (h + 2j) k] in place (interleaved pairs; turns [m, k / 2] holds cos, sin), then k and v to their slots.
template <class C> void rotate_and_write(float* qkv, int m, Heads n, const float* turns, C* keys, C* values, const int64_t* slots) {
    for (int r = 0; r < m; ++r) {
        float* row = qkv + int64_t(r) * (n.query + 2 * n.kv) * n.dim;
        const float* turn = turns + int64_t(r) * n.dim;
        for (int head = 0; head < n.query + n.kv; ++head)
            for (int i = 0; i < n.dim; i += 2) {
                float *pair = row + head * n.dim + i, a = pair[0], b = pair[1];
                pair[0] = a * turn[i] - b * turn[i + 1];
                pair[1] = a * turn[i + 1] + b * turn[i];
            }
        const float *k = row + n.query * n.dim, *v = k + n.kv * n.dim;
        for (int i = 0; i < n.kv * n.dim; ++i) {
            narrow(k[i], keys[slots[r] * n.kv * n.dim + i]);
            narrow(v[i], values[slots[r] * n.kv * n.dim + i]);
        }
    }
}

// One query token against `length` tokens in the pages of its row; out [h, k]
template <class C>
void attend(const float* q, Heads n, const C* keys, const C* values, const int64_t* pages, int page_size, int length, float* out) {
    static thread_local std::vector<float> scores;
    scores.resize(size_t(length) * n.query);
    int group = n.query / n.kv, width = n.kv * n.dim;
    auto at = [&](const C* base, int t) { return base + (pages[t / page_size] * page_size + t % page_size) * width; };
    float scale = 1.0f / std::sqrt(float(n.dim));
    for (int t = 0; t < length; ++t)
        for (int head = 0; head < n.query; ++head)
            scores[int64_t(head) * length + t] = dot(q + head * n.dim, at(keys, t) + head / group * n.dim, n.dim) * scale;
    for (int head = 0; head < n.query; ++head) {
        float* s = scores.data() + int64_t(head) * length;
        float top = *std::max_element(s, s + length), sum = 0;
        for (int t = 0; t < length; ++t) sum += s[t] = std::exp(s[t] - top);
        for (int t = 0; t < length; ++t) s[t] /= sum;
    }
    std::fill(out, out + n.query * n.dim, 0.0f);
    for (int t = 0; t < length; ++t)
        for (int head = 0; head < n.query; ++head) {
            const C* v = at(values, t) + head / group * n.dim;
            float p = scores[int64_t(head) * length + t];
            for (int i = 0; i < n.dim; ++i) out[head * n.dim + i] += p * widen(v[i]);
        }
}

template <class C>
void attention(float* qkv, int m, Heads n, const float* turns, C* keys, C* values, const int64_t* slots, const int64_t* table, int num_pages,
               int page_size, const int64_t* lengths, float* out) {
    rotate_and_write(qkv, m, n, turns, keys, values, slots);
    for (int r = 0; r < m; ++r)
        attend(qkv + int64_t(r) * (n.query + 2 * n.kv) * n.dim, n, keys, values, table + int64_t(r) * num_pages, page_size, int(lengths[r]),
               out + int64_t(r) * n.query * n.dim);
}

}  // namespace

extern "C" {

void ernie_linear(int kind, const float* x, int m, const void* w, int k, int n, float* y) {
    if (kind) linear(x, m, (const bf16*)w, k, n, y);
    else linear(x, m, (const float*)w, k, n, y);
}

void ernie_ffn(int kind, const float* x, int m, int d, const void* gate_up, const void* down, int f, float* y) {
    Scratch& s = scratch(m, d, f);
    if (kind) ffn(x, m, d, (const bf16*)gate_up, (const bf16*)down, f, nullptr, s, y);
    else ffn(x, m, d, (const float*)gate_up, (const float*)down, f, nullptr, s, y);
}

void ernie_moe(int kind, const float* x, int m, int d, const int64_t* experts, const float* weights, int a, const void* gate_up,
               const void* down, int e, int f, float* y) {
    if (kind) moe(x, m, d, experts, weights, a, (const bf16*)gate_up, (const bf16*)down, e, f, y);
    else moe(x, m, d, experts, weights, a, (const float*)gate_up, (const float*)down, e, f, y);
}

// logits [m, e] out; chosen experts and weights [m, a] out: softmax, top-a of (p + bias), p / max(sum, norm_min)
void ernie_route(const float* x, int m, int d, const float* w, const float* bias, int e, int a, float norm_min, float* logits,
                 int64_t* experts, float* weights) {
    static thread_local std::vector<float> p;
    p.resize(e);
    linear(x, m, w, d, e, logits);
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

void ernie_attention(int kind, float* qkv, int m, int h, int j, int dim, const float* turns, void* keys, void* values, const int64_t* slots,
                     const int64_t* table, int num_pages, int page_size, const int64_t* lengths, float* out) {
    if (kind) attention(qkv, m, {h, j, dim}, turns, (bf16*)keys, (bf16*)values, slots, table, num_pages, page_size, lengths, out);
    else attention(qkv, m, {h, j, dim}, turns, (float*)keys, (float*)values, slots, table, num_pages, page_size, lengths, out);
}

}
