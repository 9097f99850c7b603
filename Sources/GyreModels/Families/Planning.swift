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
    } catch { throw ConfigurationError("", "\(error)") }
  }
}
