import GyreLayers
import GyreMixers
import GyreTensors

/// transformers `xlstm`: the mLSTM stack of xLSTM-7B, weights single or fused.
///
/// The library's own chunkwise kernel has faults; the recurrence is what is computed here. Beck et al.,
/// "xLSTM 7B: a recurrent LLM for fast and efficient inference", 2025.
/// https://arxiv.org/abs/2503.13427
public enum XLSTMFamily: CheckpointFamily {
  public static let name = "transformers xlstm"
  public static let modelType: String? = "xlstm"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var model = ModelConfiguration()
    model.vocabulary = try c.vocabulary(default: 50304)
    model.width = try c.width(c.has("hidden_size") ? "hidden_size" : "embedding_dim", default: 4096)
    model.layers = try c.layerCount(
      c.has("num_blocks") ? "num_blocks" : "num_hidden_layers", default: 32)
    model.normEpsilon = try c.double("norm_eps", default: 1e-6)
    model.logitCap = try c.double("output_logit_soft_cap", default: 30)
    let bias = try c.bool("use_bias", default: false)
    if bias {
      model.normBias = true
      model.finalNormBias = false
    }
    let mode = try c.string("weight_mode", default: "single")
    try c.require(
      mode == "single" || mode == "fused", "weight_mode",
      "must be single or fused, is \"\(mode.prefix(40))\"")
    let isFused = mode == "fused"

    var mixer = MLSTM.Configuration()
    mixer.heads = try c.count("num_heads", default: 8)
    mixer.keyExpansion = try c.double("qk_dim_factor", default: 0.5)
    mixer.valueExpansion = try c.double("v_dim_factor", default: 1)
    mixer.gateCap = try c.double("gate_soft_cap", default: 15)
    mixer.epsilon = try c.double("eps", default: 1e-6)
    mixer.normEpsilon = model.normEpsilon
    mixer.bias = bias
    mixer.separate = !isFused
    try model.setMixer(MLSTM.self, mixer)
    var mlp = GatedMLP.Configuration()
    mlp.hidden = try hidden(c, width: model.width)
    mlp.bias = bias
    mlp.separate = !isFused
    try model.setFeedForward(GatedMLP.self, mlp)

    var t = TensorMap()
    t.embedding("backbone.embeddings.weight", tied: false)
    t.linear("norm", "backbone.out_norm")
    for i in 0..<model.layers {
      let (ours, theirs) = ("layers.\(i)", "backbone.blocks.\(i)")
      t.linear("\(ours).mixer_norm", "\(theirs).norm_mlstm", bias: bias)
      t.linear("\(ours).feed_forward_norm", "\(theirs).norm_ffn", bias: bias)
      let (layer, gates) = ("\(theirs).mlstm_layer", "\(ours).mixer.gates")
      if isFused {
        t.linear("\(ours).mixer.qkvo", "\(layer).qkv_opreact", bias: bias)
        t.linear(gates, "\(layer).ifgate_preact", bias: true)
        t.linear("\(ours).feed_forward.up", "\(theirs).ffn.proj_up_gate_z", bias: bias)
      } else {
        for (a, b) in [("q", "q"), ("k", "k"), ("v", "v"), ("o", "ogate_preact")] {
          t.linear("\(ours).mixer.\(a)", "\(layer).\(b)", bias: bias)
        }
        for part in ["weight", "bias"] {
          t.concatenated(
            "\(gates).\(part)", ["\(layer).igate_preact.\(part)", "\(layer).fgate_preact.\(part)"],
            rows: [mixer.heads, mixer.heads])
        }
        t.linear("\(ours).feed_forward.gate", "\(theirs).ffn.proj_up_gate", bias: bias)
        t.linear("\(ours).feed_forward.up", "\(theirs).ffn.proj_up", bias: bias)
      }
      t.linear("\(ours).mixer.norm", "\(layer).multihead_norm", bias: bias)
      t.linear("\(ours).mixer.output", "\(layer).out_proj", bias: bias)
      t.linear("\(ours).feed_forward.down", "\(theirs).ffn.proj_down", bias: bias)
    }
    return FamilyPlan(model: model, tensors: t)
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    guard let mixer = model.uniform(MLSTM.self),
      let mlp = model.uniformFeedForward(GatedMLP.self), let cap = model.logitCap
    else { return nil }
    return .object([
      "architectures": .array([.string("xLSTMForCausalLM")]), "model_type": .string("xlstm"),
      "vocab_size": .integer(model.vocabulary), "hidden_size": .integer(model.width),
      "embedding_dim": .integer(model.width), "num_blocks": .integer(model.layers),
      "num_hidden_layers": .integer(model.layers), "num_heads": .integer(mixer.heads),
      "qk_dim_factor": .number(mixer.keyExpansion), "v_dim_factor": .number(mixer.valueExpansion),
      "use_bias": .bool(mixer.bias), "norm_eps": .number(model.normEpsilon),
      "eps": .number(mixer.epsilon), "gate_soft_cap": .number(mixer.gateCap),
      "output_logit_soft_cap": .number(cap),
      "weight_mode": .string("single"),
      // Half a channel more, so that rounding down gives the hidden width.
      "ffn_proj_factor": .number((Double(mlp.hidden) + 0.5) / Double(model.width)),
      "ffn_round_up_to_multiple_of": .integer(1), "tie_word_embeddings": .bool(false),
    ])
  }

  /// width · factor, rounded up to a multiple as the library's floating-point division does.
  private static func hidden(
    _ c: ForeignConfiguration, width: Int
  ) throws(ConfigurationError) -> Int {
    let factor = try c.double("ffn_proj_factor", default: 2.667)
    let multiple = try c.count("ffn_round_up_to_multiple_of", default: 64)
    try c.require(factor > 0 && factor < 1024, "ffn_proj_factor", "must be in (0, 1024)")
    let wanted = Double(width) * factor + Double(multiple) - 1
    return Int((wanted / Double(multiple)).rounded(.down)) * multiple
  }
}
