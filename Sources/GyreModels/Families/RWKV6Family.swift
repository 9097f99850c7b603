import GyreLayers
import GyreMixers
import GyreTensors

/// flash-linear-attention `rwkv6`.
///
/// Peng et al., "Eagle and Finch", 2024. https://arxiv.org/abs/2404.05892
public enum RWKV6Family: CheckpointFamily {
  public static let name = "flash-linear-attention rwkv6"
  public static let modelType: String? = "rwkv6"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var stack = try RWKVStack(c)
    var mixer = RWKV6.Configuration()
    mixer.heads = try c.count("num_heads", default: 4)
    mixer.keyExpansion = try c.double("expand_k", default: 0.5)
    mixer.valueExpansion = try c.double("expand_v", default: 1)
    mixer.mixRank = try c.count("proj_low_rank_dim", default: 32)
    mixer.decayRank = try c.count("gate_low_rank_dim", default: 64)
    // The norm of heads has the stack's epsilon in this library, its own in GGUF files.
    mixer.normEpsilon = try c.double("head_norm_eps", default: stack.model.normEpsilon)
    try c.require(
      mixer.normEpsilon > 0 && mixer.normEpsilon < 1, "head_norm_eps",
      "must be in (0, 1), is \(mixer.normEpsilon)")
    try stack.setMixers(RWKV6.self, Array(repeating: mixer, count: stack.model.layers))
    var channels = RWKV6ChannelMix.Configuration()
    channels.hidden = try stack.hidden(c, ratio: 3.5)
    channels.activation = try c.flaActivation("hidden_act", default: "sqrelu")
    try stack.model.setFeedForward(RWKV6ChannelMix.self, channels)

    for i in 0..<stack.model.layers {
      let (ours, theirs) = ("layers.\(i).mixer", "model.layers.\(i).attn")
      if !stack.isAttention(i) {
        stack.tensors.same("\(ours).mix", "\(theirs).x_proj.0.mu")
        stack.tensors.linear("\(ours).mix_down", "\(theirs).x_proj.0.linear")
        stack.tensors.same("\(ours).mix_up.weight", "\(theirs).x_proj.2.weight")
        stack.tensors.same("\(ours).mix_bias", "\(theirs).x_bias")
        for (a, b) in [("receptance", "r"), ("key", "k"), ("value", "v"), ("gate", "g")] {
          stack.tensors.linear("\(ours).\(a)", "\(theirs).\(b)_proj.linear")
        }
        stack.tensors.linear("\(ours).decay.down", "\(theirs).w_proj.linear.lora.0")
        stack.tensors.linear("\(ours).decay.up", "\(theirs).w_proj.linear.lora.2", bias: true)
        stack.tensors.same("\(ours).bonus", "\(theirs).bonus")
        stack.tensors.linear("\(ours).norm", "\(theirs).g_norm", bias: true)
        stack.tensors.linear("\(ours).output", "\(theirs).o_proj")
      }
      let (block, ffn) = ("layers.\(i).feed_forward", "model.layers.\(i).ffn")
      for (a, b) in [("r", "receptance"), ("k", "key")] {
        stack.tensors.same("\(block).mix_\(a)", "\(ffn).\(b).mu")
        stack.tensors.linear("\(block).\(b)", "\(ffn).\(b).linear")
      }
      stack.tensors.linear("\(block).value", "\(ffn).value")
    }
    return FamilyPlan(model: stack.model, tensors: stack.tensors)
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    guard let mixer = model.uniform(RWKV6.self),
      let channels = model.uniformFeedForward(RWKV6ChannelMix.self)
    else { return nil }
    let stack = model.rwkvFields(
      "rwkv6", "RWKV6", hidden: channels.hidden, activation: channels.activation)
    return .object(
      stack.merging([
        "num_heads": .integer(mixer.heads), "expand_k": .number(mixer.keyExpansion),
        "expand_v": .number(mixer.valueExpansion), "proj_low_rank_dim": .integer(mixer.mixRank),
        "gate_low_rank_dim": .integer(mixer.decayRank),
        "head_norm_eps": .number(mixer.normEpsilon),
      ]) { first, _ in first })
  }
}
