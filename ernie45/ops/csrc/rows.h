// Rows of any length a vector at a time, and SwiGLU over them. Knows nothing about whole matrices.
#pragma once
#include "vectors.h"

namespace {

constexpr int WIDTH = LANES;  // the loops below run over whole vectors; a rest shorter than one goes through a padded copy

// Vectors of a row of n elements, the last one padded with zeros
template <class T> inline vec at(const T* row, int i, int n) {
    if (i + WIDTH <= n) return load(row + i);
    float rest[WIDTH] = {};
    for (int k = i; k < n; ++k) rest[k - i] = widen(row[k]);
    return load(rest);
}
template <class T> inline void put(T* row, int i, int n, vec v) {
    if (i + WIDTH <= n) return store(row + i, v);
    for (int k = i; k < n; ++k) narrow(v[k - i], row[k]);
}

// gate_up [2 f] -> silu(gate) * up * scale
template <class T> inline void swiglu(const T* gate_up, int f, float scale, T* y) {
    for (int i = 0; i < f; i += WIDTH) {
        vec gate = at(gate_up, i, f);
        put(y, i, f, gate * sigmoid(gate) * at(gate_up + f, i, f) * scale);
    }
}

// And back, from the gradient g [f]; returns that of scale. y, unless null, gets what `swiglu` gives.
template <class T> inline float swiglu_back(const T* gate_up, const T* g, int f, float scale, T* gate_up_grad, T* y = nullptr) {
    vec product = {};
    for (int i = 0; i < f; i += WIDTH) {
        vec gate = at(gate_up, i, f), up = at(gate_up + f, i, f), grad = at(g, i, f), s = sigmoid(gate), silu = gate * s;
        product += grad * silu * up;
        if (y) put(y, i, f, silu * up * scale);
        put(gate_up_grad, i, f, grad * up * scale * (s + silu * (1.0f - s)));
        put(gate_up_grad + f, i, f, grad * silu * scale);
    }
    return total(product);
}

}  // namespace
