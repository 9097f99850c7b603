import GyreLayers
import GyreMixers
import GyreTensors

/// transformers `qwen3_next`: gated delta networks with gated attention at every fourth layer, and
/// experts with a shared one.
///
/// Qwen Team, "Qwen3-Next", 2025.
public enum Qwen3NextFamily: CheckpointFamily {
  public static let name = "transformers qwen3_next"
  public static let modelType: String? = "qwen3_next"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var model = ModelConfiguration()
    model.vocabulary = try c.vocabulary(default: 151_936)
    model.width = try c.width(default: 2048)
    model.layers = try c.layerCount("num_hidden_layers", default: 48)
    model.norm = .rmsUnitOffset
    model.normEpsilon = try c.double("rms_norm_eps", default: 1e-6)
    model.tiesEmbedding = try c.bool("tie_word_embeddings", default: false)
    let attention = try attention(c, model)
    let linear = try linear(c, model)
    let experts = try experts(c)
    var mlp = GatedMLP.Configuration()
    mlp.hidden = try c.count("intermediate_size", default: 5632)
    (mlp.activation, mlp.separate) = (experts.activation, true)
    let isSparse = try sparseLayers(c)

    var t = TensorMap()
    t.embedding("model.embed_tokens.weight", tied: model.tiesEmbedding)
    t.same("norm.weight", "model.norm.weight")
    t.ignored("mtp.*")
    model.pattern = []
    var blocks: [String] = []
    for (i, type) in try types(c, layers: model.layers).enumerated() {
      let (ours, theirs) = ("layers.\(i)", "model.layers.\(i)")
      t.same("\(ours).mixer_norm.weight", "\(theirs).input_layernorm.weight")
      t.same("\(ours).feed_forward_norm.weight", "\(theirs).post_attention_layernorm.weight")
      if type == "full_attention" {
        model.pattern.append(AttentionMixer.kind)
        map(&t, "\(ours).mixer", "\(theirs).self_attn", attention)
      } else {
        model.pattern.append(GatedDeltaNet.kind)
        map(&t, "\(ours).mixer", "\(theirs).linear_attn", linear)
      }
      let block = (ours: "\(ours).feed_forward", theirs: "\(theirs).mlp")
      if isSparse(i) {
        blocks.append(MixtureOfExperts.kind)
        t.linear("\(block.ours).router", "\(block.theirs).gate")
        t.experts(block.ours, block.theirs, count: experts.experts)
        t.gatedUnit("\(block.ours).shared", "\(block.theirs).shared_expert")
        t.linear("\(block.ours).shared_gate", "\(block.theirs).shared_expert_gate")
      } else {
        blocks.append(GatedMLP.kind)
        t.gatedUnit(block.ours, block.theirs)
      }
    }
    if model.pattern.contains(GatedDeltaNet.kind) { try model.addMixer(GatedDeltaNet.self, linear) }
    if model.pattern.contains(AttentionMixer.kind) {
      try model.addMixer(AttentionMixer.self, attention)
    }
    if blocks.contains(MixtureOfExperts.kind) { try model.addMixer(MixtureOfExperts.self, experts) }
    if blocks.contains(GatedMLP.kind) { try model.addMixer(GatedMLP.self, mlp) }
    model.feedForward = nil
    model.feedForwardPattern = blocks
    return FamilyPlan(model: model, tensors: t)
  }

  // MARK: - Options

  private static func attention(
    _ c: ForeignConfiguration, _ model: ModelConfiguration
  ) throws(ConfigurationError) -> AttentionMixer.Configuration {
    var o = AttentionMixer.Configuration()
    o.heads = try c.count("num_attention_heads", default: 16)
    o.keyHeads = try c.count("num_key_value_heads", default: 2)
    o.headSize = try c.count("head_dim", default: 256)
    o.bias = try c.bool("attention_bias", default: false)
    o.normalizesKeys = true
    o.keyNorm = .rmsUnitOffset
    o.keyNormEpsilon = model.normEpsilon
    o.gated = true
    o.separate = true
    let rotary = try RotaryParameters(
      c, headSize: o.headSize, defaultFraction: 0.25, lengthDefault: 32768)
    rotary.apply(to: &o, headSize: o.headSize)
    return o
  }

  private static func linear(
    _ c: ForeignConfiguration, _ model: ModelConfiguration
  ) throws(ConfigurationError) -> GatedDeltaNet.Configuration {
    var o = GatedDeltaNet.Configuration()
    o.headSize = try c.count("linear_key_head_dim", default: 128)
    let valueSize = try c.count("linear_value_head_dim", default: 128)
    o.valueExpansion = Double(valueSize) / Double(o.headSize)
    o.heads = try c.count("linear_num_key_heads", default: 16)
    o.valueHeads = try c.count("linear_num_value_heads", default: 32)
    try c.require(
      o.valueHeads % o.heads == 0, "linear_num_value_heads",
      "must be a multiple of \(o.heads) key heads, is \(o.valueHeads)")
    o.convolution = try c.taps("linear_conv_kernel_dim")
    o.activation = try c.convolutionActivation("hidden_act")
    o.normEpsilon = model.normEpsilon
    return o
  }

  private static func experts(
    _ c: ForeignConfiguration
  ) throws(ConfigurationError) -> MixtureOfExperts.Configuration {
    var o = MixtureOfExperts.Configuration()
    o.experts = try c.int("num_experts", default: 512, in: 0...4096)
    o.expertsPerToken = try c.count("num_experts_per_tok", default: 10)
    o.hidden = try c.count("moe_intermediate_size", default: 512)
    o.sharedHidden = try c.count("shared_expert_intermediate_size", default: 512)
    o.normalizesWeights = try c.bool("norm_topk_prob", default: true)
    o.activation = try c.activation("hidden_act", default: "silu")
    o.separate = true
    return o
  }

  private static func sparseLayers(
    _ c: ForeignConfiguration
  ) throws(ConfigurationError) -> (Int) -> Bool {
    let step = try c.count("decoder_sparse_step", default: 1)
    let dense = Set(try c.ints("mlp_only_layers", default: []))
    let experts = try c.int("num_experts", default: 512, in: 0...4096)
    return { experts > 0 && !dense.contains($0) && ($0 + 1) % step == 0 }
  }

  private static func types(
    _ c: ForeignConfiguration, layers: Int
  ) throws(ConfigurationError) -> [String] {
    guard c.has("layer_types") else {
      let interval = try c.count("full_attention_interval", default: 4)
      return (1...layers).map { $0 % interval == 0 ? "full_attention" : "linear_attention" }
    }
    return try c.layerTypes(layers: layers, among: ["linear_attention", "full_attention"])
  }

  // MARK: - Tensors

  /// Rows of `q_proj` are a head's query and its gate in turn.
  private static func map(
    _ t: inout TensorMap, _ ours: String, _ theirs: String, _ o: AttentionMixer.Configuration
  ) {
    let size = o.headSize
    for (part, suffix) in [("weight", "weight")] + (o.bias ? [("bias", "bias")] : []) {
      for (i, name) in ["q", "gate"].enumerated() {
        t.pieces(
          "\(ours).\(name).\(part)",
          [
            .init(
              "\(theirs).q_proj.\(suffix)",
              .order(
                (0..<o.heads).flatMap { head in
                  (0..<size).map { (2 * head + i) * size + $0 }
                }), of: 2 * o.heads * size)
          ])
      }
    }
    for (a, b) in [("k", "k"), ("v", "v"), ("output", "o")] {
      t.linear("\(ours).\(a)", "\(theirs).\(b)_proj", bias: o.bias)
    }
    for (a, b) in [("query_norm", "q_norm"), ("key_norm", "k_norm")] {
      t.linear("\(ours).\(a)", "\(theirs).\(b)")
    }
  }

  /// Rows of `in_proj_qkvz` are a key head's q, k, v and z in turn, those of `in_proj_ba` its b and a.
  private static func map(
    _ t: inout TensorMap, _ ours: String, _ theirs: String, _ o: GatedDeltaNet.Configuration
  ) {
    let (keySize, heads) = (o.headSize, o.heads)
    let each = o.valueHeads / heads
    let values = each * Int((o.valueExpansion * Double(keySize)).rounded())
    func rows(_ sizes: [Int], _ order: [Int]) -> [Int] {
      let total = sizes.reduce(0, +)
      return order.flatMap { part in
        let start = sizes[..<part].reduce(0, +)
        return (0..<heads).flatMap { head in
          (0..<sizes[part]).map { head * total + start + $0 }
        }
      }
    }
    t.permutedRows(
      "\(ours).qkvg.weight", "\(theirs).in_proj_qkvz.weight",
      rows([keySize, keySize, values, values], [0, 1, 2, 3]))
    t.permutedRows(
      "\(ours).gates.weight", "\(theirs).in_proj_ba.weight", rows([each, each], [1, 0]))
    t.same(
      "\(ours).convolution.weight", "\(theirs).conv1d.weight",
      shape: [heads * (2 * keySize + values), 1, o.convolution])
    for name in ["A_log", "dt_bias", "norm.weight"] {
      t.same("\(ours).\(name)", "\(theirs).\(name)")
    }
    t.linear("\(ours).output", "\(theirs).out_proj")
  }
}
