import GyreLayers
import GyreMixers
import GyreTensors

/// transformers `rwkv`: RWKV-4.
///
/// With `rescale_every` the library halves the stream, and the maps that write to it, every so many
/// layers in inference. Here the stream keeps its size and the ε of the norms grows instead, which gives
/// the same numbers. The library's final norm takes 1e-5 whatever `layer_norm_epsilon` is.
///
/// Peng et al., "RWKV: reinventing RNNs for the Transformer era", 2023.
/// https://arxiv.org/abs/2305.13048
public enum RWKV4Family: CheckpointFamily {
  public static let name = "transformers rwkv"
  public static let modelType: String? = "rwkv"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var model = ModelConfiguration()
    model.vocabulary = try c.vocabulary(default: 50277)
    model.width = try c.width(default: 4096)
    model.layers = try c.layerCount("num_hidden_layers", default: 32)
    model.norm = .layer
    model.normEpsilon = try c.double("layer_norm_epsilon", default: 1e-5)
    if model.normEpsilon != 1e-5 { model.finalNormEpsilon = 1e-5 }
    model.normalizesEmbedding = true
    model.halvingInterval = max(
      try c.int("rescale_every", default: 6, in: -4096...4096), 0)
    model.tiesEmbedding = try c.bool("tie_word_embeddings", default: false)

    var mixer = RWKV4.Configuration()
    mixer.channels = try c.count("attention_hidden_size", default: model.width)
    try model.setMixer(RWKV4.self, mixer)
    var channels = RWKV4ChannelMix.Configuration()
    channels.hidden = try c.count("intermediate_size", default: 4 * model.width)
    try model.setFeedForward(RWKV4ChannelMix.self, channels)

    var t = TensorMap()
    let row: [Int] = [1, 1, model.width]
    t.embedding("rwkv.embeddings.weight", head: "head.weight", tied: model.tiesEmbedding)
    t.linear("embedding_norm", "rwkv.blocks.0.pre_ln", bias: true)
    t.linear("norm", "rwkv.ln_out", bias: true)
    for i in 0..<model.layers {
      let (ours, theirs) = ("layers.\(i)", "rwkv.blocks.\(i)")
      t.linear("\(ours).mixer_norm", "\(theirs).ln1", bias: true)
      t.linear("\(ours).feed_forward_norm", "\(theirs).ln2", bias: true)
      for (a, b) in [("r", "receptance"), ("k", "key"), ("v", "value")] {
        t.same(
          "\(ours).mixer.mix_\(a)", "\(theirs).attention.time_mix_\(b)", shape: .init(row))
        t.linear("\(ours).mixer.\(b)", "\(theirs).attention.\(b)")
      }
      t.same("\(ours).mixer.decay", "\(theirs).attention.time_decay")
      t.same("\(ours).mixer.bonus", "\(theirs).attention.time_first")
      t.linear("\(ours).mixer.output", "\(theirs).attention.output")
      for (a, b) in [("r", "receptance"), ("k", "key")] {
        t.same(
          "\(ours).feed_forward.mix_\(a)", "\(theirs).feed_forward.time_mix_\(b)",
          shape: .init(row))
      }
      for part in ["receptance", "key", "value"] {
        t.linear("\(ours).feed_forward.\(part)", "\(theirs).feed_forward.\(part)")
      }
    }
    return FamilyPlan(model: model, tensors: t)
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    guard let mixer = model.uniform(RWKV4.self),
      let channels = model.uniformFeedForward(RWKV4ChannelMix.self)
    else { return nil }
    return .object([
      "architectures": .array([.string("RwkvForCausalLM")]), "model_type": .string("rwkv"),
      "vocab_size": .integer(model.vocabulary), "hidden_size": .integer(model.width),
      "num_hidden_layers": .integer(model.layers),
      "attention_hidden_size": .integer(mixer.channels),
      "intermediate_size": .integer(channels.hidden),
      "layer_norm_epsilon": .number(model.normEpsilon),
      "rescale_every": .integer(model.halvingInterval),
      "tie_word_embeddings": .bool(model.tiesEmbedding),
    ])
  }
}
