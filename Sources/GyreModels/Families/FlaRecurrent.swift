import GyreLayers
import GyreMixers

/// flash-linear-attention `hgrn`; see `HGRN`.
public enum FlaHGRNFamily: CheckpointFamily {
  public static let name = "flash-linear-attention hgrn"
  public static let modelType: String? = "hgrn"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var layout = try FlaLayout(c)
    var o = HGRN.Configuration()
    o.expansion = try c.int("expand_ratio", default: 1, in: 1...64)
    o.convolution = try c.shortConvolution(default: false)
    o.boundsGates = try c.bool("use_lower_bound", default: true)
    o.normWeight = try c.affine()
    o.normEpsilon = layout.model.normEpsilon
    let channels = o.expansion * layout.model.width
    let options = o
    var plan = try layout.plan(HGRN.self, o) { t, at in
      t.stacked(
        "\(at.mixer).ifg", at.attn, ["i_proj", "f_proj", "g_proj"].map { ($0, channels) })
      t.convolutions(
        "\(at.mixer).convolution", at.attn, ["i_conv1d", "f_conv1d"].map { ($0, channels) },
        taps: options.convolution)
      t.linear("\(at.mixer).output", "\(at.attn).o_proj")
      if options.normWeight { t.same("\(at.mixer).norm.weight", "\(at.attn).g_norm.weight") }
    }
    plan.mapLowerBounds(isThere: options.boundsGates, mixer: HGRN.kind)
    return plan
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    model.flaFields("hgrn", "HGRN", HGRN.self) { o in
      [
        "expand_ratio": .integer(o.expansion), "use_lower_bound": .bool(o.boundsGates),
        "elementwise_affine": .bool(o.normWeight),
      ].merging(ForeignConfiguration.shortConvolution(o.convolution)) { a, _ in a }
    }
  }
}

extension FamilyPlan {
  /// The lower bounds that all layers of a mixer share; files have them also where no layer reads
  /// them.
  mutating func mapLowerBounds(isThere: Bool, mixer: String) {
    guard isThere else { return }
    if model.pattern.contains(mixer) {
      tensors.same("lower_bounds.weight", "model.lower_bounds")
    } else {
      tensors.ignored("model.lower_bounds")
    }
  }
}

/// flash-linear-attention `hgrn2`; see `HGRN2`. The norm's epsilon is the 1e-5 that the layer's fused
/// norm has, whatever `norm_eps` says.
public enum FlaHGRN2Family: CheckpointFamily {
  public static let name = "flash-linear-attention hgrn2"
  public static let modelType: String? = "hgrn2"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var layout = try FlaLayout(c)
    let width = layout.model.width
    var o = HGRN2.Configuration()
    if c.isNull("expand_ratio") {
      let heads = try c.count("num_heads")
      try c.require(
        width % heads == 0, "num_heads", "must divide hidden_size \(width), is \(heads)")
      o.expansion = width / heads
    } else {
      o.expansion = try c.count("expand_ratio", default: 128)
      try c.require(
        width % o.expansion == 0, "expand_ratio",
        "must divide hidden_size \(width), is \(o.expansion)")
    }
    o.scale = 1 / Double(o.expansion).squareRoot()
    o.convolution = try c.shortConvolution(default: false)
    o.boundsGates = try c.bool("use_lower_bound", default: true)
    o.normWeight = try c.affine()
    let options = o
    var plan = try layout.plan(HGRN2.self, o) { t, at in
      t.stacked("\(at.mixer).qfi", at.attn, ["q_proj", "f_proj", "i_proj"].map { ($0, width) })
      t.convolutions(
        "\(at.mixer).convolution", at.attn,
        ["q_conv1d", "f_conv1d", "i_conv1d"].map { ($0, width) }, taps: options.convolution)
      t.linear("\(at.mixer).output", "\(at.attn).o_proj")
      if options.normWeight { t.same("\(at.mixer).norm.weight", "\(at.attn).g_norm.weight") }
    }
    plan.mapLowerBounds(isThere: options.boundsGates, mixer: HGRN2.kind)
    return plan
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    model.flaFields("hgrn2", "HGRN2", HGRN2.self) { o in
      [
        "expand_ratio": .integer(o.expansion), "use_lower_bound": .bool(o.boundsGates),
        "elementwise_affine": .bool(o.normWeight),
      ].merging(ForeignConfiguration.shortConvolution(o.convolution)) { a, _ in a }
    }
  }
}

/// flash-linear-attention `lightnet`; see `LightNet`. The norm's epsilon is the 1e-6 that the layer's
/// fused norm has, whatever `norm_eps` says.
public enum FlaLightNetFamily: CheckpointFamily {
  public static let name = "flash-linear-attention lightnet"
  public static let modelType: String? = "lightnet"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var layout = try FlaLayout(c, attentionFields: ["qkv_bias", "window_size"])
    let width = layout.model.width
    var o = LightNet.Configuration()
    if c.has("num_heads") { o.heads = try c.count("num_heads") }
    if c.isNull("expand_ratio") {
      try c.require(
        o.heads > 0 && width % max(o.heads, 1) == 0, "num_heads",
        "must divide hidden_size \(width) where expand_ratio is null, is \(o.heads)")
      o.expansion = width / max(o.heads, 1)
    } else {
      o.expansion = try c.count("expand_ratio", default: 128)
    }
    let heads = o.heads > 0 ? o.heads : width / o.expansion
    try c.require(
      heads > 0 && width % max(heads, 1) == 0, o.heads > 0 ? "num_heads" : "expand_ratio",
      "must give a number of heads that divides hidden_size \(width), gives \(heads)")
    o.gateRank = try c.count("gate_low_rank_dim", default: 128)
    o.convolution = try c.shortConvolution(default: false)
    o.normWeight = try c.affine()
    let keys = heads * o.expansion
    let options = o
    return try layout.plan(LightNet.self, o) { t, at in
      let rows = [keys, keys, width]
      t.stacked(
        "\(at.mixer).qkv", at.attn, zip(["q_proj", "k_proj", "v_proj"], rows).map { ($0, $1) })
      t.convolutions(
        "\(at.mixer).convolution", at.attn,
        zip(["q_conv1d", "k_conv1d", "v_conv1d"], rows).map { ($0, $1) },
        taps: options.convolution)
      t.linear("\(at.mixer).gate.down", "\(at.attn).g_proj.0")
      t.linear("\(at.mixer).gate.up", "\(at.attn).g_proj.1")
      t.linear("\(at.mixer).output", "\(at.attn).o_proj")
      if options.normWeight { t.same("\(at.mixer).norm.weight", "\(at.attn).g_norm.weight") }
    }
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    model.flaFields("lightnet", "LightNet", LightNet.self) { o in
      [
        "expand_ratio": .integer(o.expansion), "num_heads": .integer(o.heads),
        "gate_low_rank_dim": .integer(o.gateRank), "elementwise_affine": .bool(o.normWeight),
      ].merging(ForeignConfiguration.shortConvolution(o.convolution)) { a, _ in a }
    }
  }
}
