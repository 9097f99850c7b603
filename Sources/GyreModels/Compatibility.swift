import GyreLayers
import GyreMixers

/// What a public library's code does otherwise than its mathematics, and a model can be asked to do
/// too, so that its numbers are equal to the library's.
public enum Compatibility: String, Sendable, Hashable, CaseIterable {
  /// `mom` of flash-linear-attention on a CPU: memories take tokens in the order of an unstable sort.
  case flaMomOrder = "fla_mom"
  /// `mesa_net` of flash-linear-attention: its solver rounds to float16.
  case flaMesaRounding = "fla_mesa_net"

  /// The kind of mixer that it is about.
  public var kind: String {
    switch self {
    case .flaMomOrder: MixtureOfMemories.kind
    case .flaMesaRounding: MesaNet.kind
    }
  }

  private var option: String {
    switch self {
    case .flaMomOrder: "unstableOrder"
    case .flaMesaRounding: "roundsToHalf"
    }
  }

  /// Sets the option of every mixer that it is about.
  ///
  /// - Throws: where the model has none.
  public func apply(to model: inout ModelConfiguration) throws(ConfigurationError) {
    let entries = Set(model.pattern).filter { Layers.kind($0) == kind }
    guard !entries.isEmpty else {
      throw ConfigurationError(
        "compat", "\(rawValue) is for models with '\(kind)'; this one has \(model.pattern)")
    }
    for entry in entries {
      let key = model.mixers[entry] == nil ? kind : entry
      var options = model.mixers[key]?.members ?? [:]
      options[option] = .bool(true)
      model.mixers[key] = .object(options)
    }
  }
}
