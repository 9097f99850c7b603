import GyreLayers
import GyreMixers
import GyreTensors

/// flash-linear-attention `rwkv7`.
///
/// Peng et al., "RWKV-7 Goose", 2025. https://arxiv.org/abs/2503.14456
public enum RWKV7Family: CheckpointFamily {
  public static let name = "flash-linear-attention rwkv7"

  public static func recognizes(
    _ config: ForeignConfiguration, tensorNames: Set<String>
  ) -> Bool {
    config["model_type"]?.text == "rwkv7" && !tensorNames.contains("emb.weight")
  }

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var stack = try RWKVStack(c)
    let (width, layers) = (stack.model.width, stack.model.layers)
    let size = try headSize(c, width: width)
    let values = try valueWidths(c, width: width, layers: layers)
    var mixer = RWKV7.Configuration()
    mixer.headSize = size
    // Given as null, a rank follows the published rule, scaled by the head size.
    let factor = Double(size) / 64
    func rank(
      _ key: String, default fallback: Int, _ slope: Double
    ) throws(ConfigurationError) -> Int {
      if c.has(key) { return try c.count(key) }
      if !c.isNull(key) { return fallback }
      let steps = (slope * Double(width).squareRoot() / 32).rounded(.toNearestOrEven)
      return max(32, 32 * Int(steps))
    }
    mixer.decayRank = try rank("decay_low_rank_dim", default: 64, 2.5 * factor)
    mixer.gateRank = try rank("gate_low_rank_dim", default: 128, 5)
    mixer.rateRank = try rank("a_low_rank_dim", default: 64, 2.5 * factor)
    mixer.valueRank = try rank("v_low_rank_dim", default: 16, 1.7 * factor)
    mixer.normEpsilon = Double(size) * stack.model.normEpsilon
    mixer.keyEpsilon = try c.bool("fuse_norm", default: true) ? 1e-6 : 1e-24
    try stack.setMixers(
      RWKV7.self,
      values.map { value in
        var options = mixer
        options.valueWidth = value
        return options
      })
    var channels = RWKV7ChannelMix.Configuration()
    channels.hidden = try stack.hidden(c, ratio: 4)
    channels.activation = try c.flaActivation("hidden_act", default: "sqrelu")
    try stack.model.setFeedForward(RWKV7ChannelMix.self, channels)

    for i in 0..<layers {
      let (ours, theirs) = ("layers.\(i).mixer", "model.layers.\(i).attn")
      if !stack.isAttention(i) {
        for name in ["r", "w", "k", "v", "a", "g"] {
          stack.tensors.same("\(ours).x_\(name)", "\(theirs).x_\(name)", shape: [1, 1, width])
        }
        for name in ["k_k", "k_a", "r_k"] {
          stack.tensors.same("\(ours).\(name)", "\(theirs).\(name)")
        }
        for (a, b) in [("receptance", "r"), ("key", "k"), ("value", "v"), ("output", "o")] {
          stack.tensors.linear("\(ours).\(a)", "\(theirs).\(b)_proj")
        }
        for (a, b) in [("decay", "w"), ("rate", "a"), ("residual_value", "v"), ("gate", "g")] {
          if b == "v" && i == 0 { continue }
          stack.tensors.linear("\(ours).\(a).down", "\(theirs).\(b)_lora.lora.0")
          stack.tensors.linear("\(ours).\(a).up", "\(theirs).\(b)_lora.lora.2", bias: b != "g")
        }
        stack.tensors.linear("\(ours).norm", "\(theirs).g_norm", bias: true)
      }
      let (block, ffn) = ("layers.\(i).feed_forward", "model.layers.\(i).ffn")
      stack.tensors.same("\(block).x_k", "\(ffn).x_k")
      stack.tensors.linear("\(block).key", "\(ffn).key")
      stack.tensors.linear("\(block).value", "\(ffn).value")
    }
    return FamilyPlan(model: stack.model, tensors: stack.tensors)
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    guard let mixer = model.uniform(RWKV7.self),
      let channels = model.uniformFeedForward(RWKV7ChannelMix.self)
    else { return nil }
    let stack = model.rwkvFields(
      "rwkv7", "RWKV7", hidden: channels.hidden, activation: channels.activation)
    return .object(
      stack.merging([
        "head_dim": .integer(mixer.headSize), "value_dim": .integer(mixer.valueWidth),
        "decay_low_rank_dim": .integer(mixer.decayRank),
        "a_low_rank_dim": .integer(mixer.rateRank), "v_low_rank_dim": .integer(mixer.valueRank),
        "gate_low_rank_dim": .integer(mixer.gateRank),
        "fuse_norm": .bool(mixer.keyEpsilon == 1e-6), "use_l2warp": .bool(false),
      ]) { first, _ in first })
  }

  private static func headSize(
    _ c: ForeignConfiguration, width: Int
  ) throws(ConfigurationError) -> Int {
    if c.isNull("head_dim") {
      let heads = try c.count("num_heads")
      try c.require(
        width % heads == 0, "num_heads", "must divide hidden_size \(width), is \(heads)")
      return width / heads
    }
    let size = try c.count("head_dim", default: 64)
    try c.require(width % size == 0, "head_dim", "must divide hidden_size \(width), is \(size)")
    return size
  }

  /// One width or one a layer, multiples of the model's.
  private static func valueWidths(
    _ c: ForeignConfiguration, width: Int, layers: Int
  ) throws(ConfigurationError) -> [Int] {
    let given: [Int]
    if case .array = c["value_dim"] {
      given = try c.ints("value_dim")
      try c.require(
        given.count == layers, "value_dim", "must have \(layers) numbers, has \(given.count)")
    } else {
      given = Array(repeating: try c.count("value_dim", default: width), count: layers)
    }
    for value in given {
      try c.require(
        value >= width && value % width == 0, "value_dim",
        "must be a multiple of hidden_size \(width), is \(value)")
    }
    return given
  }
}

/// RWKV-7 as its authors store it: `blocks.N.att.*`, low-rank maps transposed. All sizes are those of the
/// tensors; no `config.json` is needed.
///
/// https://github.com/BlinkDL/RWKV-LM
public enum OriginalRWKV7Family: CheckpointFamily {
  public static let name = "original rwkv7"
  public static let hasConfiguration = false

  public static func recognizes(
    _ config: ForeignConfiguration, tensorNames: Set<String>
  ) -> Bool {
    tensorNames.contains("blocks.0.att.r_k") && tensorNames.contains("emb.weight")
  }

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    /// An extent of a stored tensor.
    func extent(_ name: String, _ axis: Int) throws(ConfigurationError) -> Int {
      guard let shape = c.stored[name], shape.rank == 2, shape[axis] > 0 else {
        throw ConfigurationError(name, "must be a stored matrix")
      }
      return shape[axis]
    }
    var model = ModelConfiguration()
    model.vocabulary = try extent("emb.weight", 0)
    model.width = try extent("emb.weight", 1)
    model.layers = 1
    while c.stored["blocks.\(model.layers).att.r_k"] != nil { model.layers += 1 }
    model.norm = .layer
    model.normEpsilon = 1e-5
    model.normalizesEmbedding = true
    var mixer = RWKV7.Configuration()
    mixer.headSize = try extent("blocks.0.att.r_k", 1)
    mixer.normEpsilon = 64e-5
    mixer.decayRank = try extent("blocks.0.att.w1", 1)
    mixer.rateRank = try extent("blocks.0.att.a1", 1)
    mixer.gateRank = try extent("blocks.0.att.g1", 1)
    if model.layers > 1 { mixer.valueRank = try extent("blocks.1.att.v1", 1) }
    try model.setMixer(RWKV7.self, mixer)
    var channels = RWKV7ChannelMix.Configuration()
    channels.hidden = try extent("blocks.0.ffn.key.weight", 0)
    try model.setFeedForward(RWKV7ChannelMix.self, channels)

    var t = TensorMap()
    t.same("embedding.weight", "emb.weight")
    t.same("head.weight", "head.weight")
    t.linear("embedding_norm", "blocks.0.ln0", bias: true)
    t.linear("norm", "ln_out", bias: true)
    let row: Shape = [1, 1, model.width]
    for i in 0..<model.layers {
      let (ours, theirs) = ("layers.\(i)", "blocks.\(i)")
      t.linear("\(ours).mixer_norm", "\(theirs).ln1", bias: true)
      t.linear("\(ours).feed_forward_norm", "\(theirs).ln2", bias: true)
      let (mixer, att) = ("\(ours).mixer", "\(theirs).att")
      for name in ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a"] {
        t.same("\(mixer).\(name)", "\(att).\(name)", shape: row)
      }
      t.same("\(mixer).r_k", "\(att).r_k")
      for name in ["receptance", "key", "value", "output"] {
        t.linear("\(mixer).\(name)", "\(att).\(name)")
      }
      for (a, b) in [("decay", "w"), ("rate", "a"), ("residual_value", "v"), ("gate", "g")] {
        if b == "v" && i == 0 {
          // The first layer has no value to mix with; the maps are there and unused.
          for part in ["v0", "v1", "v2"] { t.ignored("\(att).\(part)") }
          continue
        }
        t.transposed("\(mixer).\(a).down.weight", "\(att).\(b)1")
        t.transposed("\(mixer).\(a).up.weight", "\(att).\(b)2")
        if b != "g" { t.same("\(mixer).\(a).up.bias", "\(att).\(b)0", shape: row) }
      }
      t.linear("\(mixer).norm", "\(att).ln_x", bias: true)
      t.same("\(ours).feed_forward.x_k", "\(theirs).ffn.x_k", shape: row)
      t.linear("\(ours).feed_forward.key", "\(theirs).ffn.key")
      t.linear("\(ours).feed_forward.value", "\(theirs).ffn.value")
    }
    return FamilyPlan(model: model, tensors: t)
  }
}
