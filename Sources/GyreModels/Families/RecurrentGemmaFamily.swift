import GyreLayers
import GyreMixers
import GyreTensors

/// transformers `recurrent_gemma`: Griffin's recurrent blocks with attention over a window at every
/// third layer.
///
/// De et al., "Griffin", 2024. https://arxiv.org/abs/2402.19427; Botev et al., "RecurrentGemma",
/// 2024. https://arxiv.org/abs/2404.07839
public enum RecurrentGemmaFamily: CheckpointFamily {
  public static let name = "transformers recurrent_gemma"
  public static let modelType: String? = "recurrent_gemma"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var model = ModelConfiguration()
    model.vocabulary = try c.vocabulary(default: 256_000)
    model.width = try c.width(default: 2560)
    model.layers = try c.layerCount("num_hidden_layers", default: 26)
    model.norm = .rmsUnitOffset
    model.normEpsilon = try c.double("rms_norm_eps", default: 1e-6)
    model.tiesEmbedding = try c.bool("tie_word_embeddings", default: true)
    // The library keeps the factor √D in bfloat16.
    model.embeddingScale = Double(
      BFloat16.float(BFloat16.bits(Float(Double(model.width).squareRoot()))))
    let cap = try c.double("logits_soft_cap", default: 30)
    try c.require(cap > 0 && cap.isFinite, "logits_soft_cap", "must be positive, is \(cap)")
    model.logitCap = cap

    let heads = try c.count("num_attention_heads", default: 10)
    try c.require(
      model.width % heads == 0, "num_attention_heads",
      "must divide hidden_size \(model.width), is \(heads)")
    let bias = try c.bool("attention_bias", default: false)
    var attention = AttentionMixer.Configuration()
    attention.heads = heads
    attention.headSize = model.width / heads
    attention.keyHeads = try c.count("num_key_value_heads", default: heads)
    attention.window = try c.count("attention_window_size", default: 2048)
    attention.bias = bias
    attention.outputBias = true
    attention.separate = true
    let rotary = try RotaryParameters(
      c, headSize: attention.headSize, defaultFraction: 0.5, lengthDefault: 8192)
    try c.require(
      rotary.scaling == nil, "rope_parameters.rope_type", "must be default for this layout")
    rotary.apply(to: &attention, headSize: attention.headSize)

    var recurrent = RGLRU.Configuration()
    recurrent.channels = try c.count("lru_width", default: model.width)
    recurrent.heads = heads
    try c.require(
      recurrent.channels % heads == 0, "lru_width",
      "must be a multiple of \(heads) heads, is \(recurrent.channels)")
    recurrent.convolution = try c.taps("conv1d_width")
    recurrent.activation = try c.convolutionActivation("hidden_activation", "gelu_pytorch_tanh")
    recurrent.separate = true

    var mlp = GatedMLP.Configuration()
    mlp.hidden = try c.int("intermediate_size", default: 7680, in: 2...ForeignConfiguration.largest)
    mlp.hidden /= 2
    mlp.activation = try c.activation("hidden_activation", default: "gelu_pytorch_tanh")
    mlp.bias = true
    mlp.separate = true
    try model.setFeedForward(GatedMLP.self, mlp)

    var t = TensorMap()
    t.embedding("model.embed_tokens.weight", tied: model.tiesEmbedding)
    t.same("norm.weight", "model.final_norm.weight")
    let types = try c.strings("block_types", default: ["recurrent", "recurrent", "attention"])
    try c.require(
      !types.isEmpty && types.allSatisfy { ["recurrent", "attention"].contains($0) },
      "block_types", "must be a list of \"recurrent\" and \"attention\"")
    model.pattern = []
    for i in 0..<model.layers {
      let (ours, theirs) = ("layers.\(i)", "model.layers.\(i)")
      t.same("\(ours).mixer_norm.weight", "\(theirs).temporal_pre_norm.weight")
      t.same("\(ours).feed_forward_norm.weight", "\(theirs).channel_pre_norm.weight")
      t.gatedUnit("\(ours).feed_forward", "\(theirs).mlp_block", bias: true)
      let (mixer, block) = ("\(ours).mixer", "\(theirs).temporal_block")
      if types[i % types.count] == "attention" {
        model.pattern.append(AttentionMixer.kind)
        for name in ["q", "k", "v"] {
          t.linear("\(mixer).\(name)", "\(block).\(name)_proj", bias: bias)
        }
        t.linear("\(mixer).output", "\(block).o_proj", bias: true)
      } else {
        model.pattern.append(RGLRU.kind)
        for (a, b) in [("x", "linear_x"), ("y", "linear_y"), ("output", "linear_out")] {
          t.linear("\(mixer).\(a)", "\(block).\(b)", bias: true)
        }
        t.same(
          "\(mixer).convolution.weight", "\(block).conv_1d.weight",
          shape: [recurrent.channels, 1, recurrent.convolution])
        t.same("\(mixer).convolution.bias", "\(block).conv_1d.bias")
        t.same("\(mixer).rate", "\(block).rg_lru.recurrent_param")
        for gate in ["input_gate", "recurrent_gate"] {
          t.same("\(mixer).\(gate).weight", "\(block).rg_lru.\(gate)_weight")
          t.same(
            "\(mixer).\(gate).bias", "\(block).rg_lru.\(gate)_bias",
            shape: [heads, recurrent.channels / heads])
        }
      }
    }
    if model.pattern.contains(RGLRU.kind) { try model.addMixer(RGLRU.self, recurrent) }
    if model.pattern.contains(AttentionMixer.kind) {
      try model.addMixer(AttentionMixer.self, attention)
    }
    return FamilyPlan(model: model, tensors: t)
  }
}
