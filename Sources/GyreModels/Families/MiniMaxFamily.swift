import GyreLayers
import GyreMixers
import GyreTensors

/// transformers `minimax`: lightning and softmax attention in turn, mixture-of-experts blocks, and a
/// stream that every norm replaces.
///
///     n = norm(x)    x ← α n + β f(n)
///
/// MiniMax, "MiniMax-01: scaling foundation models with lightning attention", 2025.
/// https://arxiv.org/abs/2501.08313
public enum MiniMaxFamily: CheckpointFamily {
  public static let name = "transformers minimax"
  public static let modelType: String? = "minimax"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var model = ModelConfiguration()
    model.vocabulary = try c.vocabulary(default: 32000)
    model.width = try c.width(default: 4096)
    model.layers = try c.layerCount("num_hidden_layers", default: 32)
    model.normEpsilon = try c.double("rms_norm_eps", default: 1e-5)
    model.tiesEmbedding = try c.bool("tie_word_embeddings", default: false)
    model.initialDeviation = try c.double("initializer_range", default: 0.02)
    model.residual = .postNorm
    let heads = try c.count("num_attention_heads", default: 32)
    try c.require(
      c.has("head_dim") || model.width % heads == 0, "num_attention_heads",
      "must divide hidden_size \(model.width), is \(heads)")
    let size = try c.count("head_dim", default: max(model.width / heads, 1))
    let types = try layerTypes(c, model.layers)

    var attention = AttentionMixer.Configuration()
    attention.heads = heads
    attention.keyHeads = try c.count(
      "num_key_value_heads", default: c.isNull("num_key_value_heads") ? heads : 8)
    attention.headSize = size
    attention.separate = true
    if c.has("sliding_window") { attention.window = try c.count("sliding_window") }
    var rotary = try RotaryParameters(
      c, headSize: size, defaultBase: 1_000_000, lengthDefault: 4096 * 32)
    rotary.fraction = 1  // as the library has it
    rotary.apply(to: &attention, headSize: size)
    var lightning = LightningAttention.Configuration()
    lightning.heads = heads
    lightning.headSize = size
    lightning.activation = try c.activation("hidden_act", default: "silu")
    var experts = MixtureOfExperts.Configuration()
    experts.experts = try c.int("num_local_experts", default: 8, in: 1...4096)
    experts.expertsPerToken = try c.count("num_experts_per_tok", default: 2)
    experts.hidden = try c.count("intermediate_size", default: 14336)
    experts.activation = lightning.activation
    experts.separate = true
    try model.setFeedForward(MixtureOfExperts.self, experts)
    let kinds = types.map { $0 ? LightningAttention.kind : AttentionMixer.kind }
    if types.contains(true) { try model.setMixer(LightningAttention.self, lightning) }
    if types.contains(false) { try model.setMixer(AttentionMixer.self, attention) }
    model.pattern = Set(kinds).count == 1 ? [kinds[0]] : kinds
    for (kind, prefix) in Self.factors where kinds.contains(kind) || prefix == "mlp" {
      let factors = [
        try c.double("\(prefix)_alpha_factor", default: 1),
        try c.double("\(prefix)_beta_factor", default: 1),
      ]
      if factors != [1, 1] { model.residualFactors[kind] = factors }
    }

    var t = TensorMap()
    t.embedding("model.embed_tokens.weight", tied: model.tiesEmbedding)
    t.same("norm.weight", "model.norm.weight")
    for i in 0..<model.layers {
      let (ours, theirs) = ("layers.\(i)", "model.layers.\(i)")
      t.same("\(ours).mixer_norm.weight", "\(theirs).input_layernorm.weight")
      t.same("\(ours).feed_forward_norm.weight", "\(theirs).post_attention_layernorm.weight")
      if types[i] {
        for (a, b) in [
          ("qkv", "qkv_proj"), ("gate", "output_gate"), ("norm", "norm"), ("output", "out_proj"),
        ] { t.linear("\(ours).mixer.\(a)", "\(theirs).self_attn.\(b)") }
        // Constants of the layer's number and the block size, which follow from the configuration.
        for name in ["slope_rate", "query_decay", "key_decay", "diagonal_decay"] {
          t.ignored("\(theirs).self_attn.\(name)")
        }
      } else {
        for (a, b) in [("q", "q"), ("k", "k"), ("v", "v"), ("output", "o")] {
          t.linear("\(ours).mixer.\(a)", "\(theirs).self_attn.\(b)_proj")
        }
      }
      let (block, moe) = ("\(ours).feed_forward", "\(theirs).block_sparse_moe")
      t.linear("\(block).router", "\(moe).gate")
      for e in 0..<experts.experts {
        for (a, b) in [("gate", "w1"), ("down", "w2"), ("up", "w3")] {
          t.linear("\(block).experts.\(e).\(a)", "\(moe).experts.\(e).\(b)")
        }
      }
    }
    return FamilyPlan(model: model, tensors: t)
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    let kinds = (0..<model.layers).map { model.pattern[$0 % model.pattern.count] }
    guard Set(kinds).isSubset(of: [AttentionMixer.kind, LightningAttention.kind]),
      model.residual == .postNorm, let experts = model.uniformFeedForward(MixtureOfExperts.self),
      let attention = try? model.options(of: AttentionMixer.kind, as: AttentionMixer.self)
        .resolved(width: model.width),
      let lightning = try? model.options(of: LightningAttention.kind, as: LightningAttention.self)
        .resolved(width: model.width)
    else { return nil }
    let hasAttention = kinds.contains(AttentionMixer.kind)
    var fields: [String: JSONValue] = [
      "architectures": .array([.string("MiniMaxForCausalLM")]), "model_type": .string("minimax"),
      "vocab_size": .integer(model.vocabulary), "hidden_size": .integer(model.width),
      "num_hidden_layers": .integer(model.layers), "rms_norm_eps": .number(model.normEpsilon),
      "tie_word_embeddings": .bool(model.tiesEmbedding),
      "num_attention_heads": .integer(hasAttention ? attention.heads : lightning.heads),
      "num_key_value_heads": .integer(hasAttention ? attention.keyHeads : lightning.heads),
      "head_dim": .integer(hasAttention ? attention.headSize : lightning.headSize),
      "num_local_experts": .integer(experts.experts),
      "num_experts_per_tok": .integer(experts.expertsPerToken),
      "intermediate_size": .integer(experts.hidden),
      "hidden_act": .string(publicActivation(experts.activation)),
      "layer_types": .array(
        kinds.map {
          .string($0 == AttentionMixer.kind ? "full_attention" : "linear_attention")
        }),
    ]
    if attention.window > 0 { fields["sliding_window"] = .integer(attention.window) }
    for (kind, prefix) in Self.factors {
      let (stream, sublayer) = model.factors(of: kind)
      fields["\(prefix)_alpha_factor"] = .number(stream)
      fields["\(prefix)_beta_factor"] = .number(sublayer)
    }
    fields.merge(RotaryParameters.fields(attention)) { first, _ in first }
    return .object(fields)
  }

  /// Kinds of sublayers and how the fields of their factors begin.
  private static let factors = [
    (AttentionMixer.kind, "full_attn"), (LightningAttention.kind, "linear_attn"),
    (MixtureOfExperts.kind, "mlp"),
  ]

  /// Whether a layer has lightning attention, for each.
  private static func layerTypes(
    _ c: ForeignConfiguration, _ layers: Int
  ) throws(ConfigurationError) -> [Bool] {
    guard c.has("layer_types") else { return (0..<layers).map { $0 % 2 == 1 } }
    let names = try c.strings("layer_types")
    try c.require(
      names.count == layers, "layer_types", "must have \(layers) names, has \(names.count)")
    var result: [Bool] = []
    for name in names {
      try c.require(
        name == "linear_attention" || name == "full_attention", "layer_types",
        "must be linear_attention or full_attention, has \"\(name.prefix(40))\"")
      result.append(name == "linear_attention")
    }
    return result
  }
}
