// minGRU: a = sigmoid(-z), u = sigmoid(z) * g(c) with g(c) = c + 1/2 for c >= 0, sigmoid(c) else.
#include "four.cuh"
#include "scan.cuh"

struct MinGRU {
  static constexpr bool needs_input = true;
  GYRE_DEVICE MinGRU(const gyre_scan_args &, long) {}
  GYRE_DEVICE float load_first(const gyre_scan_args &s, long i) const { return load(s.a, i); }
  GYRE_DEVICE static float g(float c) { return c >= 0.f ? c + 0.5f : sigmoid(c); }
  GYRE_DEVICE float rate(float z) const { return sigmoid(-z); }
  GYRE_DEVICE float input(float z, float c) const { return sigmoid(z) * g(c); }
  GYRE_DEVICE void gradient(
      const gyre_scan_args &s, long i, float z, float c, float total, float da, float) {
    store(s.da, i, sigmoid(z) * sigmoid(-z) * (total * g(c) - da));
    store(s.du, i, total * sigmoid(z) * (c >= 0.f ? 1.f : sigmoid(c) * sigmoid(-c)));
  }
  GYRE_DEVICE void finish(const gyre_scan_args &, long) const {}
};

GYRE_KERNEL min_gru_forward(gyre_scan_args s) { scan_forward<MinGRU>(s); }
GYRE_KERNEL min_gru_backward(gyre_scan_args s) { scan_backward<MinGRU>(s); }

// One token, four channels a thread; h_final may be h0.
template <bool HALF> GYRE_DEVICE void step(const gyre_scan_args &s) {
  const long count = s.batch * s.width, stride = (long)gridDim.x * blockDim.x * 4;
  for (long i = ((long)blockIdx.x * blockDim.x + threadIdx.x) * 4; i < count; i += stride) {
    const long row = (unsigned)(i >> 2) / (unsigned)(s.width >> 2), at = i + row * (s.pitch - s.width);
    const Raw4<HALF> first(s.a, at), second(s.u, at);
    const bool fresh = !present(s.h0) || (s.reset && s.reset[row]);
    Four h = fresh ? zero4() : load4<false>(s.h0, i);
    const Four z = first.four(), c = second.four();
    EACH_CHANNEL(j) {
      const float open = sigmoid(z.c[j]);
      h.c[j] = sigmoid(-z.c[j]) * h.c[j] + open * MinGRU::g(c.c[j]);
    }
    store4<HALF>(s.h, i, h);
    store4<false>(s.h_final, i, h);
  }
}
GYRE_KERNEL min_gru_step_half(gyre_scan_args s) { step<true>(s); }
GYRE_KERNEL min_gru_step(gyre_scan_args s) { step<false>(s); }
