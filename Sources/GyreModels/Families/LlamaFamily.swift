import GyreLayers
import GyreMixers

/// transformers `llama`: grouped-query attention with rotary positions and SwiGLU.
///
/// Touvron et al., "LLaMA", 2023. https://arxiv.org/abs/2302.13971
public enum LlamaFamily: CheckpointFamily {
  public static let name = "transformers llama"
  public static let modelType: String? = "llama"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var model = ModelConfiguration()
    model.vocabulary = try c.vocabulary(default: 32000)
    model.width = try c.width(default: 4096)
    model.layers = try c.layerCount("num_hidden_layers", default: 32)
    model.normEpsilon = try c.double("rms_norm_eps", default: 1e-6)
    model.tiesEmbedding = try c.bool("tie_word_embeddings", default: false)
    model.initialDeviation = 0.02
    let heads = try c.count("num_attention_heads", default: 32)
    try c.require(
      c.has("head_dim") || model.width % heads == 0, "num_attention_heads",
      "must divide hidden_size \(model.width), is \(heads)")
    let size = try c.count("head_dim", default: max(model.width / heads, 1))
    let attentionBias = try c.bool("attention_bias", default: false)
    let mlpBias = try c.bool("mlp_bias", default: false)

    var attention = AttentionMixer.Configuration()
    attention.heads = heads
    attention.keyHeads = try c.count("num_key_value_heads", default: heads)
    attention.headSize = size
    attention.bias = attentionBias
    attention.separate = true
    // The library reads no partial_rotary_factor for plain positions.
    var rotary = try RotaryParameters(c, headSize: size)
    if rotary.scaling == nil { rotary.fraction = 1 }
    rotary.apply(to: &attention, headSize: size)
    try model.setMixer(AttentionMixer.self, attention)

    var mlp = GatedMLP.Configuration()
    mlp.hidden = try c.count("intermediate_size", default: 11008)
    mlp.activation = try c.activation("hidden_act", default: "silu")
    mlp.bias = mlpBias
    mlp.separate = true
    try model.setFeedForward(GatedMLP.self, mlp)

    var t = TensorMap()
    t.embedding("model.embed_tokens.weight", tied: model.tiesEmbedding)
    t.same("norm.weight", "model.norm.weight")
    for i in 0..<model.layers {
      let (ours, theirs) = ("layers.\(i)", "model.layers.\(i)")
      t.same("\(ours).mixer_norm.weight", "\(theirs).input_layernorm.weight")
      t.same("\(ours).feed_forward_norm.weight", "\(theirs).post_attention_layernorm.weight")
      for (a, b) in [("q", "q"), ("k", "k"), ("v", "v"), ("output", "o")] {
        t.linear("\(ours).mixer.\(a)", "\(theirs).self_attn.\(b)_proj", bias: attentionBias)
      }
      for part in ["gate", "up", "down"] {
        t.linear("\(ours).feed_forward.\(part)", "\(theirs).mlp.\(part)_proj", bias: mlpBias)
      }
      t.ignored("\(theirs).self_attn.rotary_emb.inv_freq")
    }
    return FamilyPlan(model: model, tensors: t)
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    guard let attention = model.uniform(AttentionMixer.self),
      let mlp = model.uniformFeedForward(GatedMLP.self)
    else { return nil }
    var fields: [String: JSONValue] = [
      "architectures": .array([.string("LlamaForCausalLM")]), "model_type": .string("llama"),
      "vocab_size": .integer(model.vocabulary), "hidden_size": .integer(model.width),
      "num_hidden_layers": .integer(model.layers), "rms_norm_eps": .number(model.normEpsilon),
      "tie_word_embeddings": .bool(model.tiesEmbedding),
      "num_attention_heads": .integer(attention.heads),
      "num_key_value_heads": .integer(attention.keyHeads),
      "head_dim": .integer(attention.headSize), "attention_bias": .bool(attention.bias),
      "mlp_bias": .bool(mlp.bias), "intermediate_size": .integer(mlp.hidden),
      "hidden_act": .string(publicActivation(mlp.activation)),
    ]
    fields.merge(RotaryParameters.fields(attention)) { first, _ in first }
    return .object(fields)
  }
}
