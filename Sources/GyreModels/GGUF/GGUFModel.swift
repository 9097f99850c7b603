import GyreCheckpoints
import GyreLayers
import GyreTensors

/// An architecture of GGUF files: which public layout its metadata and tensors are, in other words.
protocol GGUFArchitecture: Sendable {
  /// Values of `general.architecture`; the first is written.
  static var names: [String] { get }
  /// Public layouts that are written so.
  static var families: [any CheckpointFamily.Type] { get }
  /// The public layout's `config.json`.
  ///
  /// - Throws: the metadata key that is missing or cannot be.
  static func configuration(
    _ m: GGUFMetadata
  ) throws(ConfigurationError) -> [String: JSONValue]
  /// Where the tensors of the public layout lie in the file.
  static func map(_ c: ForeignConfiguration, _ map: inout GGUFMap) throws(ConfigurationError)
  /// The metadata of a public layout, by keys below the architecture.
  ///
  /// - Throws: what the file format cannot express.
  static func metadata(
    _ c: ForeignConfiguration
  ) throws(ConfigurationError) -> [(String, GGUFValue)]
}

extension GGUFValue {
  static func integer(_ value: Int) -> GGUFValue { .integer(Int64(value)) }
}

/// A GGUF file read as the public layout that it was made from: configuration and tensors under
/// that layout's names.
struct GGUFModel: Sendable {
  static let architectures: [any GGUFArchitecture.Type] = [
    GGUFLlama.self, GGUFMamba.self, GGUFMamba2.self, GGUFRWKV6.self, GGUFRWKV7.self,
    GGUFQwen3Next.self,
  ]

  let configuration: JSONValue
  let tensors: GGUFTensors

  /// - Throws: an architecture that is not known, a key of the metadata that is missing or wrong.
  init(_ file: GGUFFile) throws(ConfigurationError) {
    let known = Self.architectures.flatMap { $0.names }
    guard let name = file.architecture,
      let architecture = Self.architectures.first(where: { $0.names.contains(name) })
    else {
      throw ConfigurationError(
        "general.architecture",
        "must be one of \(known), is \(file.architecture.map { "\"\($0)\"" } ?? "missing")")
    }
    let value = JSONValue.object(
      try architecture.configuration(GGUFMetadata(file: file, architecture: name)))
    configuration = value
    var map = GGUFMap()
    try architecture.map(ForeignConfiguration(value), &map)
    tensors = GGUFTensors(file, map)
  }
}
