import GyreLayers
import GyreMixers
import GyreTensors

/// transformers `lfm2`: gated short convolutions and grouped-query attention with normalised heads.
///
/// Liquid AI, "LFM2", 2025.
public enum LFM2Family: CheckpointFamily {
  public static let name = "transformers lfm2"
  public static let modelType: String? = "lfm2"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var model = ModelConfiguration()
    model.vocabulary = try c.vocabulary(default: 65536)
    model.width = try c.width(default: 2560)
    model.layers = try c.layerCount("num_hidden_layers", default: 32)
    model.normEpsilon = try c.double("norm_eps", default: 1e-5)
    model.tiesEmbedding = try c.bool(
      "tie_embedding", default: try c.bool("tie_word_embeddings", default: true))

    var convolution = ShortConvolutionMixer.Configuration()
    convolution.convolution = try c.taps("conv_L_cache", default: 3)
    convolution.bias = try c.bool("conv_bias", default: false)
    var attention = AttentionMixer.Configuration()
    attention.heads = try c.count("num_attention_heads", default: 32)
    try c.require(
      c.has("head_dim") || model.width % attention.heads == 0, "num_attention_heads",
      "must divide hidden_size \(model.width), is \(attention.heads)")
    attention.headSize = try c.count("head_dim", default: max(model.width / attention.heads, 1))
    attention.keyHeads = try c.count("num_key_value_heads", default: 8)
    attention.normalizesKeys = true
    attention.keyNormEpsilon = model.normEpsilon
    attention.separate = true
    var rotary = try RotaryParameters(
      c, headSize: attention.headSize, defaultBase: 1_000_000, lengthDefault: 128_000)
    if rotary.scaling == nil { rotary.fraction = 1 }
    rotary.apply(to: &attention, headSize: attention.headSize)

    var mlp = GatedMLP.Configuration()
    mlp.hidden = try hidden(c)
    mlp.separate = true
    try model.setFeedForward(GatedMLP.self, mlp)

    var t = TensorMap()
    t.embedding("model.embed_tokens.weight", tied: model.tiesEmbedding)
    t.same("norm.weight", "model.embedding_norm.weight")
    model.pattern = []
    for (i, type) in try types(c, layers: model.layers).enumerated() {
      let (ours, theirs) = ("layers.\(i)", "model.layers.\(i)")
      t.same("\(ours).mixer_norm.weight", "\(theirs).operator_norm.weight")
      t.same("\(ours).feed_forward_norm.weight", "\(theirs).ffn_norm.weight")
      for (a, b) in [("gate", "w1"), ("up", "w3"), ("down", "w2")] {
        t.linear("\(ours).feed_forward.\(a)", "\(theirs).feed_forward.\(b)")
      }
      if type == "conv" {
        model.pattern.append(ShortConvolutionMixer.kind)
        let layer = "\(theirs).conv"
        t.linear("\(ours).mixer.input", "\(layer).in_proj", bias: convolution.bias)
        t.same(
          "\(ours).mixer.convolution.weight", "\(layer).conv.weight",
          shape: [model.width, 1, convolution.convolution])
        if convolution.bias { t.same("\(ours).mixer.convolution.bias", "\(layer).conv.bias") }
        t.linear("\(ours).mixer.output", "\(layer).out_proj", bias: convolution.bias)
      } else {
        model.pattern.append(AttentionMixer.kind)
        let layer = "\(theirs).self_attn"
        for (a, b) in [
          ("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("output", "out_proj"),
          ("query_norm", "q_layernorm"), ("key_norm", "k_layernorm"),
        ] { t.linear("\(ours).mixer.\(a)", "\(layer).\(b)") }
      }
    }
    if model.pattern.contains(ShortConvolutionMixer.kind) {
      try model.addMixer(ShortConvolutionMixer.self, convolution)
    }
    if model.pattern.contains(AttentionMixer.kind) {
      try model.addMixer(AttentionMixer.self, attention)
    }
    return FamilyPlan(model: model, tensors: t)
  }

  /// The width of the feed-forward block: ⅔ of the given one times a factor, rounded up.
  private static func hidden(_ c: ForeignConfiguration) throws(ConfigurationError) -> Int {
    let key = c.has("block_ff_dim") ? "block_ff_dim" : "intermediate_size"
    let given = try c.count(key, default: 12288)
    guard try c.bool("block_auto_adjust_ff_dim", default: true) else { return given }
    var hidden = Int(Double(2 * given) / 3)
    let factorKey = "block_ffn_dim_multiplier"
    if !c.isNull(factorKey) {
      let factor = try c.double(factorKey, default: 1)
      try c.require(factor > 0 && factor <= 1024, factorKey, "must be in (0, 1024], is \(factor)")
      let multiple = try c.count("block_multiple_of", default: 256)
      hidden = (Int(factor * Double(hidden)) + multiple - 1) / multiple * multiple
    }
    try c.require(hidden > 0, key, "must give a positive width, is \(given)")
    return hidden
  }

  /// "conv" or "full_attention" of each layer.
  private static func types(
    _ c: ForeignConfiguration, layers: Int
  ) throws(ConfigurationError) -> [String] {
    guard c.has("layer_types") else {
      let full = Set(try c.ints("full_attn_idxs", default: Array(0..<layers)))
      return (0..<layers).map { full.contains($0) ? "full_attention" : "conv" }
    }
    return try c.layerTypes(layers: layers, among: ["conv", "full_attention"])
  }
}
