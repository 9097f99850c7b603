import GyreLayers
import GyreMixers
import GyreTensors

/// flash-linear-attention `rodimus`: Rodimus blocks alone, or each followed by the shared-key window
/// attention and MLP of Rodimus+; see `Rodimus` and `SharedKeyMLP`. The library rounds that attention
/// to bfloat16; this does not.
public enum FlaRodimusFamily: CheckpointFamily {
  public static let name = "flash-linear-attention rodimus"
  public static let modelType: String? = "rodimus"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var model = ModelConfiguration()
    model.vocabulary = try c.vocabulary(default: 126_464)
    model.width = try c.width(default: 2048)
    model.layers = try c.layerCount("num_hidden_layers", default: 24)
    model.normEpsilon = try c.double("norm_eps", default: 1e-5)
    model.tiesEmbedding = try c.bool("tie_word_embeddings", default: true)
    model.initialDeviation = try c.double("initializer_range", default: 0.02)
    model.logitPenalty = try c.logitPenalty()
    let width = model.width
    let mixer = try mixer(c, normEpsilon: model.normEpsilon)
    let isPlus =
      try c.choice("block_type", default: "rodimus_plus", among: ["rodimus", "rodimus_plus"])
      == "rodimus_plus"
    let mlp = try unit(c, width: width)
    let attention = try FlaAttention.read(
      c, layers: model.layers, width: width, fields: FlaAttention.fields)
    let shared = isPlus ? try sharedKey(c, width: width, mlp, model.normEpsilon) : nil

    var t = TensorMap()
    t.embedding("model.embeddings.weight", tied: model.tiesEmbedding)
    t.same("norm.weight", "model.norm.weight")
    var (pattern, forward) = ([String](), [String]())
    for i in 0..<model.layers {
      let at = FlaLayout.Place(ours: "layers.\(i)", theirs: "model.layers.\(i)")
      let ours = "\(at.ours).feed_forward"
      if let layer = attention[i] {
        pattern.append(layer.entry)
        forward.append(GatedMLP.kind)
        try model.setMixer(AttentionMixer.self, layer.options, entry: layer.entry)
        t.same("\(at.ours).mixer_norm.weight", "\(at.theirs).attn_norm.weight")
        layer.map(&t, at)
        t.same("\(ours)_norm.weight", "\(at.theirs).mlp_norm.weight")
      } else {
        pattern.append(Rodimus.kind)
        forward.append(isPlus ? SharedKeyMLP.kind : ModelConfiguration.noFeedForward)
        t.same("\(at.ours).mixer_norm.weight", "\(at.theirs).mixer_norm.weight")
        map(&t, at, mixer, width: width)
        if let shared { map(&t, ours, at, shared) }
      }
      guard forward[i] != ModelConfiguration.noFeedForward else { continue }
      for part in ["gate", "up", "down"] {
        t.linear("\(ours).\(part)", "\(at.theirs).mlp.\(part)_proj")
      }
    }
    model.pattern = Set(pattern).count == 1 ? [pattern[0]] : pattern
    model.feedForward = nil
    model.feedForwardPattern = Set(forward).count == 1 ? [forward[0]] : forward
    if pattern.contains(Rodimus.kind) {
      try model.setOptions(Rodimus.self, mixer)
      if let shared { try model.setOptions(SharedKeyMLP.self, shared) }
    }
    if forward.contains(GatedMLP.kind) { try model.setOptions(GatedMLP.self, mlp) }
    return FamilyPlan(model: model, tensors: t)
  }

  private static func mixer(
    _ c: ForeignConfiguration, normEpsilon: Double
  ) throws(ConfigurationError) -> Rodimus.Configuration {
    var o = Rodimus.Configuration()
    o.stateSize = try c.count("expand_ratio", default: 64)
    if c.has("input_gate_low_rank"), c["input_gate_low_rank"]?.text != "auto" {
      o.gateRank = try c.count("input_gate_low_rank")
    }
    o.convolution = try c.shortConvolution(default: true)
    o.normEpsilon = normEpsilon
    if c.has("k_norm_eps") { o.keyEpsilon = try c.double("k_norm_eps") }
    return o
  }

  /// The MLP; its width is a multiple of 8.
  private static func unit(
    _ c: ForeignConfiguration, width: Int
  ) throws(ConfigurationError) -> GatedMLP.Configuration {
    var o = GatedMLP.Configuration()
    if c.has("intermediate_size") {
      o.hidden = try c.count("intermediate_size")
    } else {
      let inner = try c.double("hidden_ratio", default: 4.0 / 3) * Double(width)
      try c.require(
        inner >= 1 && inner <= Double(ForeignConfiguration.largest), "hidden_ratio",
        "must give a hidden width in 1...\(ForeignConfiguration.largest), gives \(inner)")
      o.hidden = (Int(inner) + 7) / 8 * 8
    }
    o.activation = try FlaLayout.activation(c)
    o.separate = true
    return o
  }

  private static func sharedKey(
    _ c: ForeignConfiguration, width: Int, _ mlp: GatedMLP.Configuration, _ normEpsilon: Double
  ) throws(ConfigurationError) -> SharedKeyMLP.Configuration {
    guard let spec = c.object("ska_attn") else {
      throw ConfigurationError(
        c.place("ska_attn"), "must be an object where block_type is rodimus_plus")
    }
    var o = SharedKeyMLP.Configuration()
    o.heads = try spec.count("num_heads")
    try spec.require(
      width % o.heads == 0 && width / o.heads % 2 == 0, "num_heads",
      "must divide hidden_size \(width) into heads of even size, is \(o.heads)")
    o.bias = try spec.bool("qkv_bias", default: false)
    o.normalizesKeys = try spec.bool("qk_norm", default: false)
    o.window = spec.isNull("window_size") ? 0 : try spec.count("window_size", default: 1024)
    o.rotaryBase = try spec.double("rope_theta", default: 10_000)
    o.normEpsilon = normEpsilon
    (o.hidden, o.activation, o.separate) = (mlp.hidden, mlp.activation, true)
    return o
  }

  private static func map(
    _ t: inout TensorMap, _ at: FlaLayout.Place, _ o: Rodimus.Configuration, width: Int
  ) {
    let theirs = at.theirs + ".mixer"
    let inner = Rodimus.Configuration.inner(width)
    t.stacked("\(at.mixer).input", theirs, [("up_proj", inner), ("gate_proj", inner)])
    if o.convolution > 0 {
      t.same(
        "\(at.mixer).convolution.weight", "\(theirs).short_conv.weight",
        shape: [inner, 1, o.convolution])
      t.same("\(at.mixer).convolution.bias", "\(theirs).short_conv.bias")
    }
    let n = o.stateSize
    t.stacked("\(at.mixer).qk", theirs, [("q_proj", n), ("k_proj", n)])
    t.stacked("\(at.mixer).gates", theirs, [("g_gate_proj", n), ("tau_gate_proj", n)])
    t.concatenated(
      "\(at.mixer).gates.bias", ["\(theirs).g_gate_proj.bias", "\(theirs).tau_gate_proj.bias"],
      rows: [n, n])
    t.linear("\(at.mixer).input_gate.down", "\(theirs).i_gate_proj.0")
    t.linear("\(at.mixer).input_gate.up", "\(theirs).i_gate_proj.1", bias: true)
    t.same("\(at.mixer).skip", "\(theirs).residual_weight")
    t.same("\(at.mixer).norm.weight", "\(theirs).activation_norm.weight")
    t.linear("\(at.mixer).output", "\(theirs).down_proj")
  }

  private static func map(
    _ t: inout TensorMap, _ ours: String, _ at: FlaLayout.Place, _ o: SharedKeyMLP.Configuration
  ) {
    let theirs = at.theirs + ".ska_attn"
    t.same("\(ours).attention_norm.weight", "\(at.theirs).ska_attn_norm.weight")
    t.same("\(ours).norm.weight", "\(at.theirs).mlp_norm.weight")
    for part in ["q", "k", "v"] {
      t.linear("\(ours).\(part)", "\(theirs).\(part)_proj", bias: o.bias)
    }
    t.linear("\(ours).output", "\(theirs).o_proj")
    if o.normalizesKeys {
      t.same("\(ours).query_norm.weight", "\(theirs).q_norm.weight")
      t.same("\(ours).key_norm.weight", "\(theirs).k_norm.weight")
    }
    t.ignored("\(theirs).rotary.inv_freq")
  }
}
