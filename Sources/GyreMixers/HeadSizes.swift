import GyreLayers
import GyreTensors

/// Checks that many mixers share.
enum HeadSizes {
  /// - Throws: unless `heads` divides `total`, which `name` explains.
  static func divide(
    _ total: Int, by heads: Int, field: String, of name: String
  ) throws(ConfigurationError) {
    try require(heads > 0, field, "must be positive, is \(heads)")
    try require(total > 0 && total % heads == 0, field, "must divide \(name) \(total), is \(heads)")
  }

  static func positive(_ value: Int, _ field: String) throws(ConfigurationError) {
    try require(value > 0, field, "must be positive, is \(value)")
  }

  /// Channels over width: a positive factor of at most 256.
  static func expansion(_ value: Double, _ field: String) throws(ConfigurationError) {
    try require(value > 0 && value <= 256, field, "must be in (0, 256], is \(value)")
  }

  /// `expansion` times `width`, which must be a whole number of channels a head.
  static func expanded(
    _ expansion: Double, _ width: Int, by heads: Int, field: String
  ) throws(ConfigurationError) {
    try self.expansion(expansion, field)
    let total = expansion * Double(width)
    try require(
      abs(total - total.rounded()) < 1e-6 * total, field,
      "times \(width) must be a whole number, is \(total)")
    try divide(Int(total.rounded()), by: heads, field: "heads", of: field + " · width")
  }

  /// Key and value heads for query heads; 0 stands for as many.
  static func groups(
    _ keyHeads: Int, of heads: Int, field: String
  ) throws(ConfigurationError) {
    try require(
      keyHeads >= 0 && (keyHeads == 0 || heads % keyHeads == 0), field,
      "must divide \(heads) heads (0: as many), is \(keyHeads)")
  }

  /// - Throws: unless `name` is that of a point-wise function.
  static func activation(_ name: String, _ field: String = "activation") throws(ConfigurationError)
  {
    try require(
      Unary.Kind.named(name) != nil, field,
      "must be one of \(Unary.Kind.allCases.map(\.name)), is \(name)")
  }

  /// - Throws: unless a norm can use the number.
  static func epsilon(_ value: Double, _ field: String = "normEpsilon") throws(ConfigurationError) {
    try require(value > 0 && value < 1, field, "must be in (0, 1), is \(value)")
  }

  static func convolution(_ width: Int) throws(ConfigurationError) {
    try require(
      (0...16).contains(width), "convolution", "must be in 0...16 taps (0: none), is \(width)")
  }
}

/// Makes a value and changes it: test configurations in one expression.
func with<T>(_ value: T, _ change: (inout T) -> Void) -> T {
  var value = value
  change(&value)
  return value
}
