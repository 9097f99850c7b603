import GyreLayers
import GyreMixers

// What most families do alike.

extension TensorMap {
  /// Embedding and head. A tied head may be in the file again and is not read.
  public mutating func embedding(
    _ theirs: String, head: String = "lm_head.weight", tied: Bool
  ) {
    same("embedding.weight", theirs)
    if tied { ignored(head) } else { same("head.weight", head) }
  }

  /// Weight and, where there is one, bias of a linear map or norm.
  public mutating func linear(_ ours: String, _ theirs: String, bias: Bool = false) {
    same(ours + ".weight", theirs + ".weight")
    if bias { same(ours + ".bias", theirs + ".bias") }
  }

  /// Gate, up and down of a gated feed-forward block.
  public mutating func gatedUnit(_ ours: String, _ theirs: String, bias: Bool = false) {
    for part in ["gate", "up", "down"] {
      linear("\(ours).\(part)", "\(theirs).\(part)_proj", bias: bias)
    }
  }

  /// The experts of `mixture_of_experts`, each with tensors of its own.
  public mutating func experts(_ ours: String, _ theirs: String, count: Int) {
    for i in 0..<count { gatedUnit("\(ours).experts.\(i)", "\(theirs).experts.\(i)") }
  }
}

extension ModelConfiguration {
  /// Options of a mixer, under an entry's own name where there is one.
  public mutating func setMixer<M: SequenceMixer>(
    _: M.Type, _ options: M.Configuration, entry: String? = nil
  ) throws(ConfigurationError) {
    let entry = entry ?? M.kind
    mixers[entry] = try Self.changed(options)
    if entry == M.kind { pattern = [entry] }
  }

  /// Options of a kind in a hybrid; the caller makes the pattern.
  public mutating func addMixer<M: SequenceMixer>(
    _: M.Type, _ options: M.Configuration
  ) throws(ConfigurationError) {
    mixers[M.kind] = try Self.changed(options)
  }

  /// The options of an entry of a pattern over the defaults.
  public func options<M: SequenceMixer>(
    of entry: String, as _: M.Type
  ) throws(ConfigurationError) -> M.Configuration {
    try Layers.decode(M.self, options(of: entry), "mixers.\(entry)")
  }

  /// Options of a mixer or feed-forward block under its kind, the patterns left alone.
  mutating func setOptions<M: SequenceMixer>(
    _: M.Type, _ options: M.Configuration
  ) throws(ConfigurationError) {
    mixers[M.kind] = try Self.changed(options)
  }

  /// The one feed-forward block of all layers.
  public mutating func setFeedForward<M: SequenceMixer>(
    _: M.Type, _ options: M.Configuration
  ) throws(ConfigurationError) {
    feedForward = M.kind
    feedForwardOptions = try Self.changed(options)
  }

  /// The options that differ from the defaults.
  private static func changed<C: MixerConfiguration>(_ options: C) throws(ConfigurationError)
    -> JSONValue
  {
    do {
      let defaults = try JSONValue(encoding: C()).members ?? [:]
      let given = try JSONValue(encoding: options).members ?? [:]
      return .object(given.filter { defaults[$0.key] != $0.value })
    } catch { throw ConfigurationError("config", "\(error)") }
  }
}

/// The public name of an activation.
func publicActivation(_ ours: String) -> String {
  switch ours {
  case "geluTanh": "gelu_pytorch_tanh"
  case "reluSquared": "relu2"
  default: ours
  }
}

extension ModelConfiguration {
  /// The resolved options of the one mixer that all layers use; nil where it is another or several.
  public func uniform<M: SequenceMixer>(_: M.Type) -> M.Configuration? {
    guard Set(pattern) == [M.kind], let options = try? options(of: M.kind, as: M.self) else {
      return nil
    }
    return options.resolved(width: width)
  }

  /// The resolved options of the one feed-forward block that all layers use.
  public func uniformFeedForward<M: SequenceMixer>(_: M.Type) -> M.Configuration? {
    guard feedForwardPattern == nil, feedForward == M.kind,
      let options = try? Layers.decode(M.self, feedForwardOptions, "feed_forward_options")
    else { return nil }
    return options.resolved(width: width)
  }
}

extension ForeignConfiguration {
  /// `layer_types`: one of the given names a layer.
  func layerTypes(layers: Int, among known: [String]) throws(ConfigurationError) -> [String] {
    let types = try strings("layer_types")
    try require(
      types.count == layers && types.allSatisfy(known.contains), "layer_types",
      "must be \(layers) of \(known)")
    return types
  }
}
