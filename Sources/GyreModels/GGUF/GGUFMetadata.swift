import GyreCheckpoints
import GyreLayers
import GyreTensors

/// Metadata of a GGUF file with keys below its architecture.
struct GGUFMetadata {
  let file: GGUFFile
  let architecture: String

  /// The value of "llama.block_count" for `block_count`.
  subscript(_ key: String) -> GGUFValue? { file.values["\(architecture).\(key)"] }

  func int(_ key: String, default fallback: Int? = nil) throws(ConfigurationError) -> Int {
    guard let value = self[key] else { return try absent(key, fallback) }
    guard let n = value.int, (0...1 << 24).contains(n) else {
      throw ConfigurationError("\(architecture).\(key)", "must be an integer in 0...2²⁴")
    }
    return n
  }

  /// A positive integer.
  func count(_ key: String, default fallback: Int? = nil) throws(ConfigurationError) -> Int {
    let n = try int(key, default: fallback)
    try require(n > 0, "\(architecture).\(key)", "must be positive")
    return n
  }

  func double(_ key: String, default fallback: Double? = nil) throws(ConfigurationError) -> Double {
    guard let value = self[key] else { return try absent(key, fallback) }
    guard let n = value.double, n.isFinite else {
      throw ConfigurationError("\(architecture).\(key)", "must be a number")
    }
    return n
  }

  private func absent<T>(_ key: String, _ fallback: T?) throws(ConfigurationError) -> T {
    guard let fallback else { throw ConfigurationError("\(architecture).\(key)", "is missing") }
    return fallback
  }

  /// Rows of a matrix of the file.
  func rows(_ tensor: String) throws(ConfigurationError) -> Int {
    guard let shape = try? file.info(tensor).shape, shape.rank == 2, shape[0] > 0 else {
      throw ConfigurationError(tensor, "must be a stored matrix")
    }
    return shape[0]
  }

  func has(_ tensor: String) -> Bool { file.contains(tensor) }

  var layerCount: Int {
    get throws(ConfigurationError) {
      let count = try int("block_count")
      try require(
        (1...4096).contains(count), "\(architecture).block_count", "must be in 1...4096")
      return count
    }
  }
}
