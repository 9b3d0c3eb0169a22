// What the kernels share: bf16, portable vectors and an exponential. Knows nothing about what is computed.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

struct bf16 {
    uint16_t bits;
};

inline float widen(float value) { return value; }
inline float widen(bf16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}
inline void narrow(float value, float& out) { out = value; }
inline void narrow(float value, bf16& out) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    out.bits = uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// GCC's and Clang's portable vectors: 16 lanes become one AVX-512, two AVX2 or four NEON registers.
constexpr int LANES = 16;
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef uint32_t bits_vec __attribute__((vector_size(LANES * 4)));
typedef uint16_t half_vec __attribute__((vector_size(LANES * 2), aligned(2)));

inline vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
inline vec load(const bf16* p) {
    return reinterpret_cast<vec>(__builtin_convertvector(*reinterpret_cast<const half_vec*>(p), bits_vec) << 16);
}
inline void store(float* p, vec v) { *reinterpret_cast<vec*>(p) = v; }
inline void store(bf16* p, vec v) {
    bits_vec bits = reinterpret_cast<bits_vec>(v);
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    *reinterpret_cast<half_vec*>(p) = __builtin_convertvector(bits, half_vec);
}
// By halves, which compilers turn into a few shuffles; lane by lane they do not.
inline float total(vec v) {
    typedef float half __attribute__((vector_size(32)));
    typedef float quarter __attribute__((vector_size(16)));
    union {
        vec whole;
        half halves[2];
    } a = {v};
    union {
        half whole;
        quarter quarters[2];
    } b = {a.halves[0] + a.halves[1]};
    quarter c = b.quarters[0] + b.quarters[1];
    return (c[0] + c[2]) + (c[1] + c[3]);
}

// The totals of LANES vectors, one a lane, each summed in the order of `total`: the vectors are folded together, which takes a
// third of the instructions.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define ERNIE_FOLDS 1
#endif
#endif
inline vec totals(const vec* v) {
#ifdef ERNIE_FOLDS
    vec eights[8], fours[4], twos[2];
    for (int i = 0; i < 8; ++i) {
        vec a = v[2 * i], b = v[2 * i + 1];
        eights[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                    __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
    for (int i = 0; i < 4; ++i) {
        vec a = eights[2 * i], b = eights[2 * i + 1];
        fours[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                   __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    }
    for (int i = 0; i < 2; ++i) {
        vec a = fours[2 * i], b = fours[2 * i + 1];
        twos[i] = __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
                  __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    }
    return __builtin_shufflevector(twos[0], twos[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           __builtin_shufflevector(twos[0], twos[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#else
    vec all = {};
    for (int i = 0; i < LANES; ++i) all[i] = total(v[i]);
    return all;
#endif
}

// A running sum of products of two rows, a vector at a time. In bf16 with AVX512_BF16 one instruction takes 32 pairs, exact
// products and fp32 sums; without it, and in fp32, 16. STEP says how many elements one `step` takes.
template <class T> struct Products {
    static constexpr int STEP = LANES;
    vec sums = {};
    typedef vec Operand;
    static Operand operand(const T* p) { return load(p); }
    void step(Operand a, Operand b) { sums += a * b; }
    float sum() const { return total(sums); }
};
#if defined(__AVX512BF16__)
template <> struct Products<bf16> {
    static constexpr int STEP = 2 * LANES;
    __m512 sums = _mm512_setzero_ps();
    typedef __m512bh Operand;
    static Operand operand(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
    void step(Operand a, Operand b) { sums = _mm512_dpbf16_ps(sums, a, b); }
    float sum() const { return total((vec)sums); }
};
#endif

// exp of x <= 0 (a little above by rounding is fine): 2^n times a polynomial of degree 6, relative error below 2e-7; 0 below -88.
inline vec exponential(vec x) {
    const vec least = vec{} - 88.0f;
    ivec seen = x > least;
    x = seen ? x : least;
    vec scaled = x * 1.44269504f;
    ivec whole = __builtin_convertvector(scaled - 0.5f, ivec);  // x <= 0 here: rounds to nearest
    vec n = __builtin_convertvector(whole, vec);
    vec f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    ivec power = (whole + 127) << 23;
    return seen ? p * reinterpret_cast<vec>(power) : vec{};
}

inline vec sigmoid(vec x) {
    vec small = exponential(x < 0 ? x : -x);
    return (x < 0 ? small : vec{} + 1.0f) / (1.0f + small);
}

}  // namespace
