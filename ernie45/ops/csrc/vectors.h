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
