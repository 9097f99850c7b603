// The functions of Unary.Kind, in its order, and their derivatives.
#pragma once
#include "prelude.cuh"

enum {
  RELU, RELU_SQUARED, SILU, GELU_TANH, GELU, SIGMOID, TANH, EXP, LOG, SOFTPLUS, LOG_SIGMOID,
  SQUARE, SQRT, RECIPROCAL_SQRT, NEGATE, ABSOLUTE, EXPM1, LOG1P, SINE, COSINE, FUNCTION_COUNT
};

#define ROOT_TWO_OVER_PI 0.7978845608028654f

template <int FUNCTION> GYRE_DEVICE float value(float x) {
  switch (FUNCTION) {
    case RELU: return fmaxf(x, 0.f);
    case RELU_SQUARED: return x > 0.f ? x * x : 0.f;
    case SILU: return silu(x);
    case GELU_TANH: return 0.5f * x * (1.f + tanhf(ROOT_TWO_OVER_PI * (x + 0.044715f * x * x * x)));
    // 1 + erf(u) cancels for negative u; its complement does not.
    case GELU: return 0.5f * x * erfcf(-x * 0.70710678118654752f);
    case SIGMOID: return sigmoid(x);
    case TANH: return tanhf(x);
    case EXP: return expf(x);
    case LOG: return logf(x);
    case SOFTPLUS: return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x)));
    case LOG_SIGMOID: return fminf(x, 0.f) - log1pf(expf(-fabsf(x)));
    case SQUARE: return x * x;
    case SQRT: return sqrtf(x);
    case RECIPROCAL_SQRT: return 1.f / sqrtf(x);
    case NEGATE: return -x;
    case ABSOLUTE: return fabsf(x);
    case EXPM1: return expm1f(x);
    case LOG1P: return log1pf(x);
    case SINE: return sinf(x);
    default: return cosf(x);
  }
}

template <int FUNCTION> GYRE_DEVICE float slope(float x) {
  switch (FUNCTION) {
    case RELU: return x > 0.f ? 1.f : 0.f;
    case RELU_SQUARED: return x > 0.f ? 2.f * x : 0.f;
    case SILU: return silu_slope(x);
    case GELU_TANH: {
      float t = tanhf(ROOT_TWO_OVER_PI * (x + 0.044715f * x * x * x));
      float inner = ROOT_TWO_OVER_PI * (1.f + 3.f * 0.044715f * x * x);
      return 0.5f * (1.f + t) + 0.5f * x * (1.f - t * t) * inner;
    }
    case GELU:
      return 0.5f * erfcf(-x * 0.70710678118654752f) + x * expf(-0.5f * x * x) * 0.3989422804014327f;
    case SIGMOID: return sigmoid(x) * sigmoid(-x);
    case TANH: {
      float t = tanhf(x);
      return 1.f - t * t;
    }
    case EXP: return expf(x);
    case LOG: return 1.f / x;
    case SOFTPLUS: return sigmoid(x);
    case LOG_SIGMOID: return sigmoid(-x);
    case SQUARE: return 2.f * x;
    case SQRT: return 0.5f / sqrtf(x);
    case RECIPROCAL_SQRT: return -0.5f / (x * sqrtf(x));
    case NEGATE: return -1.f;
    case ABSOLUTE: return x > 0.f ? 1.f : x < 0.f ? -1.f : 0.f;
    case EXPM1: return expf(x);
    case LOG1P: return 1.f / (1.f + x);
    case SINE: return cosf(x);
    default: return -sinf(x);
  }
}
