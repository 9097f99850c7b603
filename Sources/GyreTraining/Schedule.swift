import GyreTensors

/// The learning rate over the steps of a run, as a factor on the highest.
///
/// All kinds rise linearly over the warm-up: factor (s + 1)/warmup at step s.
public struct Schedule: Sendable, Hashable {
  public enum Kind: String, Sendable, Hashable, Codable, CaseIterable {
    case constant, linear, cosine
    /// Constant, then linear over the last `decaySteps`.
    case warmupStableDecay = "wsd"
  }
  public var kind: Kind
  public var steps: Int
  public var warmupSteps: Int
  public var decaySteps: Int
  /// The factor that the decay ends at.
  public var finalFraction: Double

  public init(
    _ kind: Kind, steps: Int, warmupSteps: Int, decaySteps: Int = 0, finalFraction: Double = 0
  ) {
    self.kind = kind
    self.steps = steps
    self.warmupSteps = warmupSteps
    self.decaySteps = decaySteps
    self.finalFraction = finalFraction
  }

  public init(_ c: TrainingConfiguration) {
    self.init(
      c.schedule, steps: c.steps, warmupSteps: c.warmupSteps, decaySteps: c.decaySteps,
      finalFraction: c.finalFraction)
  }

  /// The factor at `step`, counted from 0.
  public func factor(_ step: Int) -> Double {
    if step < warmupSteps { return Double(step + 1) / Double(warmupSteps) }
    let start =
      kind == .warmupStableDecay ? max(warmupSteps, steps - decaySteps) : warmupSteps
    let span = Double(max(steps - 1 - start, 1))
    let progress = min(max(Double(step - start) / span, 0), 1)
    switch kind {
    case .constant: return 1
    case .linear, .warmupStableDecay: return 1 - (1 - finalFraction) * progress
    case .cosine:
      return finalFraction + (1 - finalFraction) * 0.5 * (1 + Functions.cos(Double.pi * progress))
    }
  }
}
