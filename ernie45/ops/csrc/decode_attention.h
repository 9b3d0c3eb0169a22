// Attention of a decode step on a CPU: one new token a sequence against its pages. Knows nothing about what is done with the result.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr int SOON = 32;  // tokens of a block, and how far ahead keys and values are fetched

template <class T> void round_to(const float* x, int64_t n, T* y) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(y + i, load(x + i));
    for (; i < n; ++i) narrow(x[i], y[i]);
}

struct Span {
    int from, to;
};

struct Heads {
    int query, kv, dim;
};

// The step's sequences and their pages
template <class T> struct Pages {
    T *keys, *values;
    const int64_t *slots, *table, *lengths;
    int num_pages, page_size;
};

// Interleaved rope; turn holds cos, sin of each pair
void rotate(float* x, const float* turn, int dim) {
    for (int i = 0; i < dim; i += 2) {
        float a = x[i], b = x[i + 1];
        x[i] = a * turn[i] - b * turn[i + 1];
        x[i + 1] = a * turn[i + 1] + b * turn[i];
    }
}

template <class T> void read_row(const T* x, int n, float* y) {
    for (int i = 0; i < n; ++i) y[i] = widen(x[i]);
}

// Into the cache: a head's rows lie apart, which no hardware prefetcher follows.
template <class T> inline void fetch(const T* x, int n) {
    for (int i = 0; i < n; i += 64 / int(sizeof(T))) __builtin_prefetch(x + i);
}

// Scores of G query heads against N tokens, whose keys start at k[0 ... N): each vector of keys is widened once for all heads, each
// of the queries read once for all tokens. scores[head * length + token].
template <int G, int N, class T> void score(const float* q, const T* const* k, int dim, float scale, float* scores, int length) {
    vec sums[G][N] = {};
    int i = 0;
    for (; i + LANES <= dim; i += LANES) {
        vec keys[N];
        for (int t = 0; t < N; ++t) keys[t] = load(k[t] + i);
        for (int head = 0; head < G; ++head) {
            vec query = load(q + head * dim + i);
            for (int t = 0; t < N; ++t) sums[head][t] += query * keys[t];
        }
    }
    if (G * N == LANES && i == dim) {
        vec all = totals(sums[0]) * scale;
        for (int head = 0; head < G; ++head) std::memcpy(scores + int64_t(head) * length, (const float*)&all + head * N, N * sizeof(float));
        return;
    }
    for (int head = 0; head < G; ++head)
        for (int t = 0; t < N; ++t) {
            float sum = total(sums[head][t]);
            for (int j = i; j < dim; ++j) sum += q[head * dim + j] * widen(k[t][j]);
            scores[int64_t(head) * length + t] = sum * scale;
        }
}

// sums [G, dim] += weights[head * length + t] times value t, for the tokens of a block; W vectors of a value at a time stay in
// registers
template <int G, int W, class T, class At>
void weigh(const float* weights, int length, At at, Span tokens, int column, int dim, float* sums) {
    vec total[G][W];
    for (int head = 0; head < G; ++head)
        for (int j = 0; j < W; ++j) total[head][j] = load(sums + head * dim + column + j * LANES);
    for (int t = tokens.from; t < tokens.to; ++t) {
        const T* v = at(t) + column;
        if (t + SOON < length) fetch(at(t + SOON) + column, W * LANES);
        for (int j = 0; j < W; ++j) {
            vec value = load(v + j * LANES);
            for (int head = 0; head < G; ++head) total[head][j] += value * weights[int64_t(head) * length + t];
        }
    }
    for (int head = 0; head < G; ++head)
        for (int j = 0; j < W; ++j) store(sums + head * dim + column + j * LANES, total[head][j]);
}

float largest(const float* s, int length) {
    int t = 0;
    vec tops = vec{} - std::numeric_limits<float>::infinity();
    for (; t + LANES <= length; t += LANES) {
        vec x = load(s + t);
        tops = x > tops ? x : tops;
    }
    float top = tops[0];
    for (int i = 1; i < LANES; ++i) top = std::max(top, tops[i]);
    for (; t < length; ++t) top = std::max(top, s[t]);
    return top;
}

void softmax(float* s, int length) {
    float top = largest(s, length);
    int t = 0;
    vec mass = {};
    for (; t + LANES <= length; t += LANES) {
        vec e = exponential(load(s + t) - top);
        store(s + t, e);
        mass += e;
    }
    float sum = total(mass);
    for (; t < length; ++t) sum += s[t] = std::exp(s[t] - top);
    for (t = 0; t < length; ++t) s[t] /= sum;
}

// A block of tokens for G query heads that share a KV head; keys(t), values(t) point to the rows of token t. First the scores,
template <int G, class T, class Keys> void score_block(const float* q, int dim, int length, Keys keys, Span tokens, float* scores) {
    constexpr int N = 4;
    float scale = 1.0f / std::sqrt(float(dim));
    int t = tokens.from;
    for (; t + N <= tokens.to; t += N) {
        const T* k[N] = {keys(t), keys(t + 1), keys(t + 2), keys(t + 3)};
        if (t + SOON + N <= length)
            for (int i = 0; i < N; ++i) fetch(keys(t + SOON + i), dim);
        score<G, N>(q, k, dim, scale, scores + t, length);
    }
    for (; t < tokens.to; ++t) {
        const T* k[1] = {keys(t)};
        score<G, 1>(q, k, dim, scale, scores + t, length);
    }
}

// then, with the scores turned into weights, the sums [G, dim].
template <int G, class T, class Values>
void weigh_block(const float* weights, int dim, int length, Values values, Span tokens, float* sums) {
    int i = 0;
    for (; i + 4 * LANES <= dim; i += 4 * LANES) weigh<G, 4, T>(weights, length, values, tokens, i, dim, sums);
    for (; i + LANES <= dim; i += LANES) weigh<G, 1, T>(weights, length, values, tokens, i, dim, sums);
    for (; i < dim; ++i)
        for (int head = 0; head < G; ++head)
            for (int t = tokens.from; t < tokens.to; ++t) sums[head * dim + i] += weights[int64_t(head) * length + t] * widen(values(t)[i]);
}

// Calls call<G>(first) for the heads of a group, four at a time and then the rest.
template <class Call> void by_fours(int group, Call call) {
    int head = 0;
    for (; head + 4 <= group; head += 4) call(std::integral_constant<int, 4>(), head);
    switch (group - head) {
        case 1: return call(std::integral_constant<int, 1>(), head);
        case 2: return call(std::integral_constant<int, 2>(), head);
        case 3: return call(std::integral_constant<int, 3>(), head);
    }
}

// One sequence's new token, some KV heads and the query heads that share them: rope, write to its slot, attend to all its tokens.
// Tokens are taken by blocks, all heads of a block one after the other, as their rows lie side by side in memory.
template <class T> void attend(const T* qkv, int r, Span kv, Heads n, const float* turns, const Pages<T>& p, T* out) {
    static thread_local std::vector<float> scores, q, k, sums;
    static thread_local std::vector<int64_t> rows;
    int group = n.query / n.kv, width = n.kv * n.dim, length = int(p.lengths[r]), first = kv.from * group, heads = kv.to * group - first;
    const T* row = qkv + int64_t(r) * (n.query + 2 * n.kv) * n.dim;
    const float* turn = turns + int64_t(r) * n.dim;
    q.resize(size_t(heads) * n.dim);
    k.resize(n.dim);
    sums.assign(size_t(heads) * n.dim, 0.0f);
    scores.resize(size_t(length) * heads);
    read_row(row + first * n.dim, heads * n.dim, q.data());
    for (int head = 0; head < heads; ++head) rotate(q.data() + head * n.dim, turn, n.dim);
    for (int kv_head = kv.from; kv_head < kv.to; ++kv_head) {
        int64_t slot = p.slots[r] * width + kv_head * n.dim;
        read_row(row + (n.query + kv_head) * n.dim, n.dim, k.data());
        rotate(k.data(), turn, n.dim);
        for (int i = 0; i < n.dim; ++i) narrow(k[i], p.keys[slot + i]);
        std::memcpy(p.values + slot, row + (n.query + n.kv + kv_head) * n.dim, n.dim * sizeof(T));
    }
    const int64_t* pages = p.table + int64_t(r) * p.num_pages;
    rows.resize(length);
    for (int t = 0; t < length; t += p.page_size)
        for (int i = 0; i < std::min(p.page_size, length - t); ++i) rows[t + i] = (pages[t / p.page_size] * p.page_size + i) * width;
    auto by_blocks = [&](auto call) {  // call(G, tokens, first head, row of the head in a token)
        for (int from = 0; from < length; from += SOON) {
            Span tokens = {from, std::min(length, from + SOON)};
            for (int kv_head = kv.from; kv_head < kv.to; ++kv_head)
                by_fours(group, [&](auto g, int head) { call(g, tokens, (kv_head - kv.from) * group + head, kv_head * n.dim); });
        }
    };
    by_blocks([&](auto g, Span tokens, int head, int column) {
        auto keys = [&](int t) { return (const T*)p.keys + rows[t] + column; };
        score_block<decltype(g)::value, T>(q.data() + head * n.dim, n.dim, length, keys, tokens, scores.data() + int64_t(head) * length);
    });
    for (int head = 0; head < heads; ++head) softmax(scores.data() + int64_t(head) * length, length);
    by_blocks([&](auto g, Span tokens, int head, int column) {
        auto values = [&](int t) { return (const T*)p.values + rows[t] + column; };
        weigh_block<decltype(g)::value, T>(scores.data() + int64_t(head) * length, n.dim, length, values, tokens, sums.data() + head * n.dim);
    });
    round_to(sums.data(), heads * n.dim, out + (int64_t(r) * n.query + first) * n.dim);
}

template <class T> void attention(const T* qkv, int m, Heads n, const float* turns, const Pages<T>& p, int threads, T* out) {
    parallel(threads, [&](int part, int parts) {
        int64_t pairs = int64_t(m) * n.kv, from = pairs * part / parts, to = pairs * (part + 1) / parts;
        while (from < to) {
            int r = int(from / n.kv), head = int(from % n.kv), count = int(std::min<int64_t>(n.kv - head, to - from));
            attend(qkv, r, {head, head + count}, n, turns, p, out);
            from += count;
        }
    });
}

}  // namespace
