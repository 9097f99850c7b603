import GyreLayers
import GyreMixers

/// flash-linear-attention `gla`; see `GatedLinearAttention`.
public enum FlaGLAFamily: CheckpointFamily {
  public static let name = "flash-linear-attention gla"

  public static func recognizes(
    _ config: ForeignConfiguration, tensorNames: Set<String>
  ) -> Bool { config["model_type"]?.text == "gla" }

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var layout = try FlaLayout(c)
    let width = layout.model.width
    var o = GatedLinearAttention.Configuration()
    o.heads = try c.count("num_heads", default: 4)
    o.keyHeads = try c.groupedHeads(of: o.heads)
    let keys = try c.expansion("expand_k", default: 0.5, of: width, heads: o.heads)
    let values = try c.expansion("expand_v", default: 1, of: width, heads: o.heads)
    (o.keyExpansion, o.valueExpansion) = (keys.ratio, values.ratio)
    if c.has("clamp_min") { o.gateFloor = try c.double("clamp_min") }
    if c.has("feature_map") { o.featureMap = try c.flaActivation("feature_map") }
    o.convolution = try c.shortConvolution(default: false)
    o.gatesOutput = try c.bool("use_output_gate", default: true)
    o.normWeight = try c.affine()
    o.normEpsilon = layout.model.normEpsilon
    let norm = try FlaGLAFamily.outputNorm(c, gatesOutput: o.gatesOutput)
    let kv = o.keyHeads > 0 ? o.keyHeads : o.heads
    let options = o
    return try layout.plan(GatedLinearAttention.self, o) { t, at in
      let rows = [
        ("q_proj", options.heads * keys.headSize), ("k_proj", kv * keys.headSize),
        ("v_proj", kv * values.headSize),
      ]
      t.stacked(
        "\(at.mixer).qkvg", at.attn,
        rows + (options.gatesOutput ? [("g_proj", options.heads * values.headSize)] : []))
      t.convolutions(
        "\(at.mixer).convolution", at.attn,
        zip(["q_conv1d", "k_conv1d", "v_conv1d"], rows).map { ($0, $1.1) },
        taps: options.convolution)
      t.linear("\(at.mixer).decay.down", "\(at.attn).gk_proj.0")
      t.linear("\(at.mixer).decay.up", "\(at.attn).gk_proj.1", bias: true)
      t.linear("\(at.mixer).output", "\(at.attn).o_proj")
      if options.normWeight { t.same("\(at.mixer).norm.weight", "\(at.attn).\(norm).weight") }
    }
  }

  /// The output norm's name, which depends on how the library would fuse it.
  static func outputNorm(
    _ c: ForeignConfiguration, gatesOutput: Bool
  ) throws(ConfigurationError) -> String {
    let isFused = try c.bool("fuse_norm", default: true)
    return isFused && gatesOutput ? "g_norm_swish_gate" : "g_norm"
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    model.flaFields("gla", "GLA", GatedLinearAttention.self) { o in
      var fields: [String: JSONValue] = [
        "num_heads": .integer(o.heads), "num_kv_heads": .integer(o.keyHeads),
        "expand_k": .number(o.keyExpansion), "expand_v": .number(o.valueExpansion),
        "use_output_gate": .bool(o.gatesOutput), "elementwise_affine": .bool(o.normWeight),
        "clamp_min": o.gateFloor.map { .number($0) } ?? .null,
      ]
      if o.featureMap != "identity" {
        fields["feature_map"] = .string(FlaLayout.activation(named: o.featureMap))
      }
      return fields.merging(ForeignConfiguration.shortConvolution(o.convolution)) { a, _ in a }
    }
  }
}

/// flash-linear-attention `retnet`; see `RetNet`. Its blocks do not pass `use_short_conv` on, so the
/// field changes nothing.
public enum FlaRetNetFamily: CheckpointFamily {
  public static let name = "flash-linear-attention retnet"

  public static func recognizes(
    _ config: ForeignConfiguration, tensorNames: Set<String>
  ) -> Bool { config["model_type"]?.text == "retnet" }

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var layout = try FlaLayout(c, ratio: 2)
    let width = layout.model.width
    var o = RetNet.Configuration()
    o.heads = try c.count("num_heads", default: 8)
    o.keyHeads = try c.groupedHeads(of: o.heads)
    let keys = try c.expansion("expand_k", default: 1, of: width, heads: o.heads)
    let values = try c.expansion("expand_v", default: 2, of: width, heads: o.heads)
    try c.require(
      keys.headSize % 2 == 0, "expand_k",
      "must give an even number of key channels a head, gives \(keys.headSize)")
    (o.keyExpansion, o.valueExpansion) = (keys.ratio, values.ratio)
    if c.has("feature_map") {
      o.featureMap = try c.activation(
        "feature_map",
        among: ["silu", "gelu", "geluTanh", "relu", "reluSquared", "sigmoid", "tanh", "softplus"])
    }
    o.gatesOutput = try c.bool("use_output_gate", default: true)
    o.normWeight = try c.affine()
    o.normEpsilon = layout.model.normEpsilon
    let norm = try FlaGLAFamily.outputNorm(c, gatesOutput: o.gatesOutput)
    let kv = o.keyHeads > 0 ? o.keyHeads : o.heads
    let options = o
    return try layout.plan(RetNet.self, o) { t, at in
      t.stacked(
        "\(at.mixer).qkvg", at.attn,
        [
          ("q_proj", options.heads * keys.headSize), ("k_proj", kv * keys.headSize),
          ("v_proj", kv * values.headSize),
        ] + (options.gatesOutput ? [("g_proj", options.heads * values.headSize)] : []))
      t.linear("\(at.mixer).output", "\(at.attn).o_proj")
      if options.normWeight { t.same("\(at.mixer).norm.weight", "\(at.attn).\(norm).weight") }
      t.ignored("\(at.attn).rotary.inv_freq")
    }
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    model.flaFields("retnet", "RetNet", RetNet.self) { o in
      var fields: [String: JSONValue] = [
        "num_heads": .integer(o.heads), "num_kv_heads": .integer(o.keyHeads),
        "expand_k": .number(o.keyExpansion), "expand_v": .number(o.valueExpansion),
        "use_output_gate": .bool(o.gatesOutput), "elementwise_affine": .bool(o.normWeight),
      ]
      if o.featureMap != "identity" {
        fields["feature_map"] = .string(publicActivation(o.featureMap))
      }
      return fields
    }
  }
}

/// flash-linear-attention `linear_attn`; see `LinearAttentionMixer`.
public enum FlaLinearAttentionFamily: CheckpointFamily {
  public static let name = "flash-linear-attention linear_attn"

  public static func recognizes(
    _ config: ForeignConfiguration, tensorNames: Set<String>
  ) -> Bool { config["model_type"]?.text == "linear_attn" }

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var layout = try FlaLayout(c)
    let width = layout.model.width
    var o = LinearAttentionMixer.Configuration()
    o.heads = try c.count("num_heads", default: 4)
    o.keyHeads = try c.groupedHeads(of: o.heads)
    let keys = try c.expansion("expand_k", default: 1, of: width, heads: o.heads)
    let values = try c.expansion("expand_v", default: 1, of: width, heads: o.heads)
    (o.keyExpansion, o.valueExpansion) = (keys.ratio, values.ratio)
    let maps = ["hedgehog", "t2r", "elementwise_product", "dpfp", "elu", "relu", "identity"]
    o.featureMap = try c.string("feature_map", default: "elementwise_product")
    try c.require(
      maps.contains(o.featureMap), "feature_map",
      "must be one of \(maps), is \"\(o.featureMap.prefix(40))\"")
    let parts =
      maps.firstIndex(of: o.featureMap).flatMap { $0 < 3 ? Self.parameters[$0] : nil } ?? []
    o.tiesFeatureMap = try c.bool("tie_feature_map_qk", default: false) && !parts.isEmpty
    o.normalizesQueries = try c.bool("norm_q", default: false)
    o.normalizesKeys = try c.bool("norm_k", default: false)
    o.normalizes = try c.bool("norm_feature_map", default: false)
    o.normWeight = try c.affine()
    o.normEpsilon = layout.model.normEpsilon
    let kv = o.keyHeads > 0 ? o.keyHeads : o.heads
    let options = o
    return try layout.plan(LinearAttentionMixer.self, o) { t, at in
      t.stacked(
        "\(at.mixer).qkv", at.attn,
        [
          ("q_proj", options.heads * keys.headSize), ("k_proj", kv * keys.headSize),
          ("v_proj", kv * values.headSize),
        ])
      for part in parts {
        if options.tiesFeatureMap {
          t.same("\(at.mixer).features.\(part)", "\(at.attn).feature_map_q.\(part)")
          t.ignored("\(at.attn).feature_map_k.\(part)")
        } else {
          t.same("\(at.mixer).query_features.\(part)", "\(at.attn).feature_map_q.\(part)")
          t.same("\(at.mixer).key_features.\(part)", "\(at.attn).feature_map_k.\(part)")
        }
      }
      t.linear("\(at.mixer).output", "\(at.attn).o_proj")
      if options.normWeight { t.same("\(at.mixer).norm.weight", "\(at.attn).norm.weight") }
    }
  }

  /// Parameters of the first three feature maps of the list, alike in both layouts.
  private static let parameters = [
    ["layer.weight", "layer.bias"], ["layer.weight"],
    ["layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias"],
  ]

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    model.flaFields("linear_attn", "LinearAttention", LinearAttentionMixer.self) { o in
      [
        "num_heads": .integer(o.heads), "num_kv_heads": .integer(o.keyHeads),
        "expand_k": .number(o.keyExpansion), "expand_v": .number(o.valueExpansion),
        "feature_map": .string(o.featureMap), "tie_feature_map_qk": .bool(o.tiesFeatureMap),
        "norm_q": .bool(o.normalizesQueries), "norm_k": .bool(o.normalizesKeys),
        "norm_feature_map": .bool(o.normalizes), "elementwise_affine": .bool(o.normWeight),
      ]
    }
  }
}

/// flash-linear-attention `hgrn`; see `HGRN`.
public enum FlaHGRNFamily: CheckpointFamily {
  public static let name = "flash-linear-attention hgrn"

  public static func recognizes(
    _ config: ForeignConfiguration, tensorNames: Set<String>
  ) -> Bool { config["model_type"]?.text == "hgrn" }

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

  public static func recognizes(
    _ config: ForeignConfiguration, tensorNames: Set<String>
  ) -> Bool { config["model_type"]?.text == "hgrn2" }

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

  public static func recognizes(
    _ config: ForeignConfiguration, tensorNames: Set<String>
  ) -> Bool { config["model_type"]?.text == "lightnet" }

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
