import GyreCheckpoints
import GyreLayers
import GyreMixers
import GyreTensors

/// A model in a public layout: what its `config.json` says and where its tensors come from.
public struct PublicLayout: Sendable {
  public let family: any CheckpointFamily.Type
  /// The text of `config.json`.
  public let configuration: String
  /// From our parameters to the public tensors.
  public let tensors: TensorMap

  /// The public layout of one of our models: the one it came from, or the first that can express it.
  ///
  /// - Throws: where there is none, with the layouts that can be written.
  public init(of model: ModelConfiguration) throws(ConfigurationError) {
    if let origin = model.origin {
      let config = try ForeignConfiguration(json: Array(origin.utf8))
      let family = try FamilyCatalog.family(config, tensorNames: [])
      if let tensors = try Self.map(model, family, config) {
        (self.family, configuration, self.tensors) = (family, origin, tensors)
        return
      }
    }
    for family in FamilyCatalog.families {
      guard case .object(var fields)? = family.configuration(of: model) else { continue }
      fields["dtype"] = .string("float32")
      fields["initializer_range"] = .number(model.initialDeviation)
      let value = JSONValue.object(fields)
      guard let tensors = try? Self.map(model, family, ForeignConfiguration(value)) else {
        continue
      }
      (self.family, configuration, self.tensors) = (family, value.prettyText() + "\n", tensors)
      return
    }
    let example = ModelConfiguration.exportable
    throw ConfigurationError(
      "pattern",
      "no public layout expresses this model; layouts exist for stacks of \(example) as their "
        + "libraries build them, and for models that were converted from a public layout")
  }

  /// The map of a model's parameters where a configuration means that model; otherwise nil.
  private static func map(
    _ model: ModelConfiguration, _ family: any CheckpointFamily.Type,
    _ config: ForeignConfiguration
  ) throws(ConfigurationError) -> TensorMap? {
    let plan = try family.plan(config)
    guard try plan.model.meaning() == model.meaning() else { return nil }
    return try plan.tensors.fused(plan.model.parameterShapes(), as: model.parameterShapes())
  }
}

extension ModelConfiguration {
  static let exportable = [
    "softmax_attention", "mamba", "mamba2", "gla", "retnet", "linear_attention", "hgrn", "hgrn2",
    "lightnet", "delta_net", "gated_delta_net", "gated_delta_product", "kimi_delta_attention",
    "mixture_of_memories", "gated_slot_attention", "bounded_memory_attention", "rwkv4",
    "rwkv6", "rwkv7", "mlstm", "forgetting_attention", "mesa_net", "lightning_attention",
  ]

  /// What a model computes, however it is written: resolved options of every sublayer, and no
  /// choices of storage or initialisation.
  func meaning() throws(ConfigurationError) -> JSONValue {
    var c = self
    c.origin = nil
    c.initialDeviation = 1
    c.balanceFactor = nil
    c.logitPenalty = nil
    c.mixers = [:]
    c.feedForwardOptions = .object([:])
    c.feedForward = nil
    c.feedForwardPattern = []
    c.pattern = []
    c.residualFactors = [:]
    var layers: [JSONValue] = []
    for index in 0..<self.layers {
      var sublayers: [JSONValue] = []
      for (_, entry, options) in self.sublayers(index) {
        guard let type = MixerCatalog.type(of: Layers.kind(entry)) else { continue }
        let factors = factors(of: entry)
        sublayers.append(
          .array([
            .string(Layers.kind(entry)), try Layers.resolved(type, options, width: width),
            .number(factors.stream), .number(factors.sublayer),
          ]))
      }
      layers.append(.array(sublayers))
    }
    do {
      return .array([try JSONValue(encoding: c), .array(layers)])
    } catch { throw ConfigurationError("config", "\(error)") }
  }
}

extension Layers {
  /// The options with what defaults stand for, without choices of storage.
  static func resolved<M: SequenceMixer>(
    _ type: M.Type, _ options: JSONValue, width: Int
  ) throws(ConfigurationError) -> JSONValue {
    let resolved = try decode(type, options, M.kind).resolved(width: width)
    do {
      var members = try JSONValue(encoding: resolved).members ?? [:]
      members["separate"] = nil
      return .object(members)
    } catch { throw ConfigurationError(M.kind, "\(error)") }
  }
}

extension TensorMap {
  /// Parameters that a layer can hold in one matrix or apart: suffixes of the one and of the parts.
  private static let fusions: [(whole: String, parts: [String])] = [
    ("mixer.qkv", ["mixer.q", "mixer.k", "mixer.v"]),
    ("mixer.qkvg", ["mixer.q", "mixer.k", "mixer.v", "mixer.gate"]),
    ("mixer.qkvo", ["mixer.q", "mixer.k", "mixer.v", "mixer.o"]),
    ("up", ["gate", "up"]),
  ]

  /// The map for a model that holds in one matrix what this map's model holds apart.
  ///
  /// - Parameters:
  ///   - apart: shapes of this map's parameters.
  ///   - ours: shapes of the other's.
  /// - Returns: nil where they differ by more.
  func fused(_ apart: [String: Shape], as ours: [String: Shape]) -> TensorMap? {
    if apart == ours { return self }
    var result = self
    for (name, shape) in ours where apart[name] != shape {
      guard let dot = name.lastIndex(of: ".") else { return nil }
      let (path, suffix) = (name[..<dot], name[dot...])
      let found = Self.fusions.first { fusion in
        path.hasSuffix("." + fusion.whole)
          && fusion.parts.allSatisfy {
            apart[path.dropLast(fusion.whole.count) + $0 + suffix] != nil
          }
      }
      guard let found else { return nil }
      var pieces: [Piece] = []
      for part in found.parts {
        let full = String(path.dropLast(found.whole.count) + part + suffix)
        guard let rule = rules[full], !rule.transposes, let rows = apart[full]?[0] else {
          return nil
        }
        pieces += rule.pieces.map { piece in
          guard case .all = piece.rows else { return piece }
          return Piece(piece.theirs, .range(0..<rows), of: rows)
        }
        if full != name { result.remove(full) }
      }
      result.pieces(name, pieces)
    }
    return Set(result.names) == Set(ours.keys) ? result : nil
  }
}

extension JSONValue {
  /// Indented text with sorted keys, in which whole real numbers stay real: `1.0`.
  public func prettyText(indent: String = "") -> String {
    let inner = indent + "  "
    switch self {
    case .number(let v) where v.isFinite: return "\(v)"
    case .array(let items) where !items.isEmpty:
      return "[\n" + items.map { inner + $0.prettyText(indent: inner) }.joined(separator: ",\n")
        + "\n\(indent)]"
    case .object(let members) where !members.isEmpty:
      return "{\n"
        + members.sorted { $0.key < $1.key }.map {
          "\(inner)\(JSONValue.string($0.key).prettyText()): \($0.value.prettyText(indent: inner))"
        }.joined(separator: ",\n") + "\n\(indent)}"
    case .null, .number: return "null"
    case .bool(let v): return "\(v)"
    case .integer(let v): return "\(v)"
    case .string(let v): return JSONText.quoted(v)
    case .array: return "[]"
    case .object: return "{}"
    }
  }
}
