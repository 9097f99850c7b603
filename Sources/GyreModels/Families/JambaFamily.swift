import GyreLayers
import GyreMixers

/// transformers `jamba`: Mamba-1 layers with softmax attention without positions at every n-th, and
/// experts in place of the feed-forward block at every m-th layer.
///
/// Lieber et al., "Jamba", 2024. https://arxiv.org/abs/2403.19887
public enum JambaFamily: CheckpointFamily {
  public static let name = "transformers jamba"
  public static let modelType: String? = "jamba"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var model = ModelConfiguration()
    model.vocabulary = try c.vocabulary(default: 65536)
    model.width = try c.width(default: 4096)
    model.layers = try c.layerCount("num_hidden_layers", default: 32)
    model.normEpsilon = try c.double("rms_norm_eps", default: 1e-6)
    model.tiesEmbedding = try c.bool("tie_word_embeddings", default: false)
    let hasAttention = try every(c, "attn_layer", period: 8, offset: 4)
    let hasExperts = try every(c, "expert_layer", period: 2, offset: 1)

    var mamba = Mamba1.Configuration()
    mamba.stateSize = try c.count("mamba_d_state", default: 16)
    mamba.inner = try c.expanded("mamba_expand", width: model.width)
    mamba.rank = try c.stepRank("mamba_dt_rank", width: model.width)
    mamba.convolution = try c.taps("mamba_d_conv")
    mamba.convolutionBias = try c.bool("mamba_conv_bias", default: true)
    mamba.bias = try c.bool("mamba_proj_bias", default: false)
    mamba.activation = try c.convolutionActivation("hidden_act")
    mamba.innerNorm = .rms
    mamba.innerNormEpsilon = model.normEpsilon

    var attention = AttentionMixer.Configuration()
    attention.heads = try c.count("num_attention_heads", default: 32)
    try c.require(
      c.has("head_dim") || model.width % attention.heads == 0, "num_attention_heads",
      "must divide hidden_size \(model.width), is \(attention.heads)")
    attention.headSize = try c.count("head_dim", default: max(model.width / attention.heads, 1))
    attention.keyHeads = try c.count(
      "num_key_value_heads", default: c.isNull("num_key_value_heads") ? attention.heads : 8)
    attention.rotary = false
    attention.separate = true

    var experts = MixtureOfExperts.Configuration()
    experts.experts = try c.int("num_experts", default: 16, in: 1...4096)
    experts.expertsPerToken = try c.count("num_experts_per_tok", default: 2)
    experts.hidden = try c.count("intermediate_size", default: 14336)
    experts.activation = try c.activation("hidden_act", default: "silu")
    experts.normalizesWeights = false
    experts.separate = true
    var mlp = GatedMLP.Configuration()
    (mlp.hidden, mlp.activation, mlp.separate) = (experts.hidden, experts.activation, true)

    var t = TensorMap()
    t.embedding("model.embed_tokens.weight", tied: model.tiesEmbedding)
    t.same("norm.weight", "model.final_layernorm.weight")
    model.pattern = []
    var blocks: [String] = []
    for i in 0..<model.layers {
      let (ours, theirs) = ("layers.\(i)", "model.layers.\(i)")
      t.same("\(ours).mixer_norm.weight", "\(theirs).input_layernorm.weight")
      t.same("\(ours).feed_forward_norm.weight", "\(theirs).pre_ff_layernorm.weight")
      if hasAttention(i) {
        model.pattern.append(AttentionMixer.kind)
        for (a, b) in [("q", "q"), ("k", "k"), ("v", "v"), ("output", "o")] {
          t.linear("\(ours).mixer.\(a)", "\(theirs).self_attn.\(b)_proj")
        }
      } else {
        model.pattern.append(Mamba1.kind)
        let layer = "\(theirs).mamba"
        MambaLayout.map(&t, "\(ours).mixer", layer, mamba, width: model.width)
        for (a, b) in [("step", "dt"), ("B", "b"), ("C", "c")] {
          t.same("\(ours).mixer.\(a)_norm.weight", "\(layer).\(b)_layernorm.weight")
        }
      }
      let block = (ours: "\(ours).feed_forward", theirs: "\(theirs).feed_forward")
      if experts.experts > 1, hasExperts(i) {
        blocks.append(MixtureOfExperts.kind)
        t.linear("\(block.ours).router", "\(block.theirs).router")
        t.experts(block.ours, block.theirs, count: experts.experts)
      } else {
        blocks.append(GatedMLP.kind)
        t.gatedUnit(block.ours, block.theirs)
      }
    }
    if model.pattern.contains(Mamba1.kind) { try model.addMixer(Mamba1.self, mamba) }
    if model.pattern.contains(AttentionMixer.kind) {
      try model.addMixer(AttentionMixer.self, attention)
    }
    if blocks.contains(MixtureOfExperts.kind) { try model.addMixer(MixtureOfExperts.self, experts) }
    if blocks.contains(GatedMLP.kind) { try model.addMixer(GatedMLP.self, mlp) }
    model.feedForward = nil
    model.feedForwardPattern = blocks
    return FamilyPlan(model: model, tensors: t)
  }

  /// Layers i with i mod period = offset.
  private static func every(
    _ c: ForeignConfiguration, _ name: String, period: Int, offset: Int
  ) throws(ConfigurationError) -> (Int) -> Bool {
    let period = try c.count("\(name)_period", default: period)
    let offset = try c.int("\(name)_offset", default: offset)
    try c.require(
      offset < period, "\(name)_offset", "must be below \(name)_period \(period), is \(offset)")
    return { $0 % period == offset }
  }
}
