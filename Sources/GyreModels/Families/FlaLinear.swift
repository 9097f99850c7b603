import GyreLayers
import GyreMixers

/// flash-linear-attention `gla`; see `GatedLinearAttention`.
public enum FlaGLAFamily: CheckpointFamily {
  public static let name = "flash-linear-attention gla"
  public static let modelType: String? = "gla"

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
  public static let modelType: String? = "retnet"

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
  public static let modelType: String? = "linear_attn"

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
