import GyreLayers
import GyreMixers
import GyreTensors

extension ModelConfiguration {
  /// The fields of flash-linear-attention's RWKV models that describe the stack.
  func rwkvFields(
    _ modelType: String, _ architecture: String, hidden: Int, activation: String
  ) -> [String: JSONValue] {
    [
      "architectures": .array([.string(architecture + "ForCausalLM")]),
      "model_type": .string(modelType), "vocab_size": .integer(vocabulary),
      "hidden_size": .integer(width), "num_hidden_layers": .integer(layers),
      "norm_eps": .number(normEpsilon), "norm_bias": .bool(normBias ?? true),
      "norm_first": .bool(normalizesEmbedding), "tie_word_embeddings": .bool(tiesEmbedding),
      "intermediate_size": .integer(hidden),
      "hidden_act": .string(FlaLayout.activation(named: activation)),
    ]
  }
}

/// What flash-linear-attention's RWKV models have in common: LayerNorms, one of them after the
/// embedding, channel mixing as the feed-forward block, attention in some layers.
struct RWKVStack {
  var model = ModelConfiguration()
  var tensors = TensorMap()
  private let attention: [Int: FlaAttention]

  init(_ c: ForeignConfiguration) throws(ConfigurationError) {
    model.vocabulary = try c.vocabulary(default: 32000)
    model.width = try c.width(default: 2048)
    model.layers = try c.layerCount("num_hidden_layers", default: 24)
    model.norm = .layer
    model.normEpsilon = try c.double("norm_eps", default: 1e-5)
    let bias = try c.bool("norm_bias", default: true)
    if !bias { model.normBias = false }
    model.normalizesEmbedding = try c.bool("norm_first", default: true)
    model.tiesEmbedding = try c.bool("tie_word_embeddings", default: false)
    model.logitPenalty = try c.logitPenalty(default: c["model_type"]?.text == "rwkv7")
    attention = try FlaAttention.read(
      c, layers: model.layers, width: model.width, fields: FlaAttention.fields)

    tensors.embedding("model.embeddings.weight", tied: model.tiesEmbedding)
    tensors.linear("norm", "model.norm", bias: bias)
    if model.normalizesEmbedding {
      tensors.linear("embedding_norm", "model.layers.0.pre_norm", bias: bias)
    }
    for i in 0..<model.layers {
      tensors.linear("layers.\(i).mixer_norm", "model.layers.\(i).attn_norm", bias: bias)
      tensors.linear("layers.\(i).feed_forward_norm", "model.layers.\(i).ffn_norm", bias: bias)
      attention[i]?.map(&tensors, .init(ours: "layers.\(i)", theirs: "model.layers.\(i)"))
    }
  }

  func isAttention(_ layer: Int) -> Bool { attention[layer] != nil }

  /// Sets the pattern: attention where the configuration says so, elsewhere the model's own mixer,
  /// whose options may differ from layer to layer.
  mutating func setMixers<M: SequenceMixer>(
    _: M.Type, _ options: [M.Configuration]
  ) throws(ConfigurationError) {
    var pattern: [String] = []
    var entries: [M.Configuration: String] = [:]
    for (layer, own) in options.enumerated() {
      if let found = attention[layer] {
        try model.setMixer(AttentionMixer.self, found.options, entry: found.entry)
        pattern.append(found.entry)
        continue
      }
      let entry = entries[own] ?? M.kind + (entries.isEmpty ? "" : "@\(entries.count)")
      if entries.updateValue(entry, forKey: own) == nil {
        try model.setMixer(M.self, own, entry: entry)
      }
      pattern.append(entry)
    }
    model.pattern = Set(pattern).count == 1 ? [pattern[0]] : pattern
  }

  /// Width of the channel mixing's hidden layer.
  func hidden(_ c: ForeignConfiguration, ratio: Double) throws(ConfigurationError) -> Int {
    if c.has("intermediate_size") { return try c.count("intermediate_size") }
    let ratio = try c.double("hidden_ratio", default: ratio)  // null means the default, too
    try c.require(ratio > 0 && ratio < 1024, "hidden_ratio", "must be in (0, 1024), is \(ratio)")
    return (Int(Double(model.width) * ratio) + 31) / 32 * 32
  }
}
