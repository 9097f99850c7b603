/// How far numbers may be from what they should be, on ‖y − r‖/‖r‖: one table, loosened by nothing.
public enum Tolerance {
  /// Outputs and states of one map in float32, in another form or on another device.
  public static let outputs = 5e-5
  /// Gradients of the same.
  public static let gradients = 5e-4
  /// Derivatives of whole models against central differences of a float32 loss.
  public static let lossDifferences = 1e-2
  /// Outputs after a thousand tokens, and where inputs saturate every gate.
  public static let extremes = 1e-3

  /// ‖y − r‖/‖r‖, ‖y‖ where r is zero. Infinite where either has a NaN or another count; infinities
  /// agree with their equals only.
  public static func error(_ y: [Double], _ r: [Double]) -> Double {
    guard y.count == r.count else { return .infinity }
    var (difference, norm) = (0.0, 0.0)
    for (a, b) in zip(y, r) {
      if a.isNaN || b.isNaN { return .infinity }
      if a == b {
        if b.isFinite { norm += b * b }
        continue
      }
      guard a.isFinite, b.isFinite else { return .infinity }
      difference += (a - b) * (a - b)
      norm += b * b
    }
    return difference == 0 ? 0 : (norm > 0 ? difference / norm : difference).squareRoot()
  }
}
