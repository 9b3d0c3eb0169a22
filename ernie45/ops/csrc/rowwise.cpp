// What a training step on a CPU does row by row: RMS norm, SwiGLU and softmax cross-entropy, each with its gradient.
// Knows nothing about torch or about layers. Plain C interface, sizes count elements; tensors fp32 or bf16 (kind 0 or 1), arithmetic
// fp32. torch's own operations make five to ten passes through memory for each of these; here it is one.
// Rows are shared among threads, a run of them each.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "rows.h"
#include "threads.h"

namespace {

float inverse_rms(vec squares, int d, float eps) { return 1.0f / std::sqrt(total(squares) / d + eps); }

vec rounded(vec v, const float*) { return v; }
vec rounded(vec v, const bf16*) {
    bf16 half[WIDTH];
    store(half, v);
    return load(half);
}

template <class T> void norm(const T* x, const T* w, int d, float eps, T* y) {
    vec squares = {};
    for (int i = 0; i < d; i += WIDTH) squares += at(x, i, d) * at(x, i, d);
    float scale = inverse_rms(squares, d, eps);
    for (int i = 0; i < d; i += WIDTH) put(y, i, d, rounded(at(x, i, d) * scale, x) * at(w, i, d));
}

// dx = scale (g w - xhat mean(g w xhat)); dw += g xhat
template <class T> void norm_back(const T* x, const T* w, const T* g, int d, float eps, T* dx, float* dw) {
    vec squares = {}, products = {};
    for (int i = 0; i < d; i += WIDTH) {
        vec value = at(x, i, d);
        squares += value * value;
        products += value * at(g, i, d) * at(w, i, d);
    }
    float scale = inverse_rms(squares, d, eps), mean = total(products) * scale / d;
    for (int i = 0; i < d; i += WIDTH) {
        vec normed = at(x, i, d) * scale, grad = at(g, i, d);
        put(dx, i, d, scale * (grad * at(w, i, d) - normed * mean));
        put(dw, i, d, at(dw, i, d) + grad * normed);
    }
}

// logits [v] -> weight * (softmax - one-hot) in their place; returns the loss, unweighted
template <class T> float cross_entropy(T* logits, int v, int64_t label, float weight, bool gradient, bool* right) {
    vec best = at(logits, 0, v);
    if (v < WIDTH)
        for (int i = v; i < WIDTH; ++i) best[i] = best[0];
    for (int i = WIDTH; i + WIDTH <= v; i += WIDTH) {
        vec next = load(logits + i);
        best = best > next ? best : next;
    }
    float top = best[0];
    for (int lane = 1; lane < WIDTH; ++lane) top = std::max(top, best[lane]);
    for (int i = v / WIDTH * WIDTH; i < v; ++i) top = std::max(top, widen(logits[i]));
    vec sums = {};
    int i = 0;
    for (; i + WIDTH <= v; i += WIDTH) sums += exponential(load(logits + i) - top);
    float sum = total(sums);
    for (; i < v; ++i) sum += std::exp(widen(logits[i]) - top);
    float logsum = top + std::log(sum), own = widen(logits[label]), loss = logsum - own;
    *right = std::find_if(logits, logits + v, [&](T z) { return widen(z) == top; }) - logits == label;
    if (!gradient) return loss;
    for (i = 0; i + WIDTH <= v; i += WIDTH) store(logits + i, exponential(load(logits + i) - logsum) * weight);
    for (; i < v; ++i) narrow(std::exp(widen(logits[i]) - logsum) * weight, logits[i]);
    narrow((std::exp(-loss) - 1.0f) * weight, logits[label]);
    return loss;
}

// Calls run(row, thread) for every row
template <class F> void rows(int64_t m, int threads, F run) {
    parallel(threads, [&](int part, int parts) {
        for (int64_t r = m * part / parts; r < m * (part + 1) / parts; ++r) run(r, part);
    });
}

}  // namespace

extern "C" {

void ernie_norm_forward(int kind, const void* x, const void* w, int m, int d, float eps, int threads, void* y) {
    auto run = [&](auto* x, auto* w, auto* y) { rows(m, threads, [&](int64_t r, int) { norm(x + r * d, w, d, eps, y + r * d); }); };
    if (kind) run((const bf16*)x, (const bf16*)w, (bf16*)y);
    else run((const float*)x, (const float*)w, (float*)y);
}

// dw [threads, d] fp32: each thread sums into its own row
void ernie_norm_backward(int kind, const void* x, const void* w, const void* g, int m, int d, float eps, int threads, void* dx,
                         float* dw) {
    auto run = [&](auto* x, auto* w, auto* g, auto* dx) {
        rows(m, threads, [&](int64_t r, int part) { norm_back(x + r * d, w, g + r * d, d, eps, dx + r * d, dw + int64_t(part) * d); });
    };
    if (kind) run((const bf16*)x, (const bf16*)w, (const bf16*)g, (bf16*)dx);
    else run((const float*)x, (const float*)w, (const float*)g, (float*)dx);
}

// scale [m] fp32, or null for 1
void ernie_swiglu_forward(int kind, const void* gate_up, const float* scale, int m, int f, int threads, void* y) {
    auto run = [&](auto* gate_up, auto* y) {
        rows(m, threads, [&](int64_t r, int) { swiglu(gate_up + r * 2 * f, f, scale ? scale[r] : 1.0f, y + r * f); });
    };
    if (kind) run((const bf16*)gate_up, (bf16*)y);
    else run((const float*)gate_up, (float*)y);
}

void ernie_swiglu_backward(int kind, const void* gate_up, const float* scale, const void* g, int m, int f, int threads,
                           void* gate_up_grad, float* scale_grad) {
    auto run = [&](auto* gate_up, auto* g, auto* gate_up_grad) {
        rows(m, threads, [&](int64_t r, int) {
            float grad = swiglu_back(gate_up + r * 2 * f, g + r * f, f, scale ? scale[r] : 1.0f, gate_up_grad + r * 2 * f);
            if (scale) scale_grad[r] = grad;
        });
    };
    if (kind) run((const bf16*)gate_up, (const bf16*)g, (bf16*)gate_up_grad);
    else run((const float*)gate_up, (const float*)g, (float*)gate_up_grad);
}

// logits [m, v] are overwritten with the gradient if there is to be one
void ernie_cross_entropy(int kind, void* logits, const int64_t* labels, const float* weights, int m, int v, int gradient, int threads,
                         float* losses, bool* right) {
    auto run = [&](auto* logits) {
        rows(m, threads, [&](int64_t r, int) {
            losses[r] = cross_entropy(logits + r * v, v, labels[r], weights[r], gradient != 0, right + r);
        });
    };
    if (kind) run((bf16*)logits);
    else run((float*)logits);
}

}
