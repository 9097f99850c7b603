// h[t] = a[t] * h[t-1] + u[t], a as it is or as its logarithm, per token or constant. 12 bytes an
// element forward in float32. The base path: any size, one thread a channel.
#include "scan.cuh"

struct Decay {
  static constexpr bool needs_input = false;
  float constant, sum;
  bool is_constant, is_log;
  GYRE_DEVICE Decay(const gyre_scan_args &s, long d)
      : sum(0.f), is_constant(s.is_constant), is_log(s.is_log) {
    constant = is_constant ? load(s.a, d) : 0.f;
  }
  GYRE_DEVICE float load_first(const gyre_scan_args &s, long i) const {
    return is_constant ? constant : load(s.a, i);
  }
  GYRE_DEVICE float rate(float x) const { return is_log ? expf(x) : x; }
  GYRE_DEVICE float input(float, float u) const { return u; }
  GYRE_DEVICE void gradient(
      const gyre_scan_args &s, long i, float, float, float total, float da, float rate) {
    store(s.du, i, total);
    if (is_log) da *= rate;
    if (is_constant) sum += da;
    else store(s.da, i, da);
  }
  GYRE_DEVICE void finish(const gyre_scan_args &s, long n) const {
    if (is_constant) store(s.da, n, sum);
  }
};

GYRE_KERNEL diagonal_scan_forward(gyre_scan_args s) { scan_forward<Decay>(s); }
GYRE_KERNEL diagonal_scan_backward(gyre_scan_args s) { scan_backward<Decay>(s); }
