import GyreTensors

/// Φ⁻¹(p) for 0 < p < 1: a rough value, then Newton's steps on Φ(x) − p.
///
/// The tail is found on its own side, where Φ keeps its digits.
func normalQuantile(_ p: Double) -> Double {
  if p > 0.5 { return -normalQuantile(1 - p) }
  // Abramowitz and Stegun 26.2.23, off by at most 4.5e-4.
  let t = (-2 * Functions.log(p)).squareRoot()
  let top = 2.515517 + t * (0.802853 + t * 0.010328)
  let bottom = 1 + t * (1.432788 + t * (0.189269 + t * 0.001308))
  var x = -(t - top / bottom)
  for _ in 0..<4 {
    // erf loses the tail's digits beyond seven deviations, where the rough value stays.
    let difference = 0.5 * (1 + Functions.erf(x / 2.0.squareRoot())) - p
    let density = Functions.exp(-x * x / 2) / (2 * Double.pi).squareRoot()
    if density < 1e-12 { break }
    x -= difference / density
  }
  return x
}
