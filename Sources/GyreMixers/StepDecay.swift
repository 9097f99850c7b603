import GyreLayers
import GyreTensors

/// The log decay that the gated delta rules share with Mamba-2: with a rate e^a a head and a step
/// bias a channel,
///
///     g = −e^a · softplus(z + b)    or, bounded below by l < 0,    g = l · σ(e^a · (z + b))
struct StepDecay: Sendable {
  private let logRate, stepBias: Parameter
  private let heads, channels: Int
  private let floor: Double?

  /// - Parameters:
  ///   - channels: decays a head.
  ///   - rates: between which e^a is drawn at the start; 1 with a floor.
  init(
    heads: Int, channels: Int = 1, rates: ClosedRange<Double>, floor: Double? = nil,
    _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.heads = heads
    self.channels = channels
    self.floor = floor
    let (low, high) = (Float(rates.lowerBound), Float(rates.upperBound))
    logRate = try p.parameter(
      "A_log", [heads],
      floor != nil
        ? .zeros
        : .values { n, g in
          g.uniforms(n, low, high).map { Float(Functions.log(max(Double($0), 1e-3))) }
        })
    stepBias = try p.parameter("dt_bias", [heads * channels], .mambaStep())
  }

  /// What makes one decay a head without a floor; nil otherwise.
  var scalarRates: (log: Tensor, bias: Tensor)? {
    channels == 1 && floor == nil ? (logRate.value, stepBias.value) : nil
  }

  /// z `[B, T, H · channels]` to g `[B, T, H]`, or `[B, T, H, channels]` where there are several.
  func callAsFunction(_ z: Tensor) -> Tensor {
    let biased = z + stepBias.value
    guard channels > 1 else { return gated(biased, rate: logRate.value.exp()) }
    return gated(biased.heads(heads), rate: logRate.value.exp().reshaped([heads, 1]))
  }

  /// Decays and, with β = `strength` · σ, write strengths from both's projection `[B, T, 2 H]`, for one decay
  /// a head: g and β, `[B, T, H]`.
  func withStrengths(_ z: Tensor, strength: Double) -> (decay: Tensor, beta: Tensor) {
    let op = StepGates(strength: strength)
    if let rates = scalarRates, z.device.fuses(op) {
      let gates = apply(op, [z, rates.bias, rates.log])
      return (gates[0], gates[1])
    }
    let parts = z.split([heads * channels, heads])
    let beta = parts[1].sigmoid()
    return (self(parts[0]), strength == 1 ? beta : beta * strength)
  }

  private func gated(_ z: Tensor, rate: Tensor) -> Tensor {
    guard let floor else { return z.softplus() * -rate }
    return (z * rate).sigmoid() * floor
  }
}
