import GyreLayers
import GyreMixers

/// flash-linear-attention `gsa`; see `GatedSlotAttention`. The norm's epsilon is the 1e-5 that the
/// layer's fused norm has, whatever `norm_eps` says; `use_output_gate`, `use_norm` and the clamps
/// change nothing there either.
public enum FlaGSAFamily: CheckpointFamily {
  public static let name = "flash-linear-attention gsa"
  public static let modelType: String? = "gsa"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var layout = try FlaLayout(c)
    let width = layout.model.width
    var o = GatedSlotAttention.Configuration()
    o.heads = try c.count("num_heads", default: 4)
    o.keyHeads = try c.groupedHeads(of: o.heads)
    let keys = try c.expansion(
      c.misspelled("expand_k"), default: 1, of: width, heads: o.heads)
    let values = try c.expansion(
      c.misspelled("expand_v"), default: 1, of: width, heads: o.heads)
    o.normWeight = try c.affine()
    try c.require(
      values.headSize * o.heads == width || !o.normWeight, c.misspelled("expand_v"),
      "must be 1, because the norm has the model's width, is \(values.ratio)")
    (o.keyExpansion, o.valueExpansion) = (keys.ratio, values.ratio)
    let slots = try c.slots(keys.headSize)
    o.slots = slots
    let map = try c.choice("feature_map", default: "swish", among: ["swish", "relu", "t2r"])
    o.featureMap = map == "swish" ? "silu" : map
    o.gateDivisor = try c.double("gate_logit_normalizer", default: 8)
    o.convolution = try c.shortConvolution(default: false)
    let kv = o.keyHeads > 0 ? o.keyHeads : o.heads
    let options = o
    return try layout.plan(GatedSlotAttention.self, o) { t, at in
      let rows = [options.heads * keys.headSize, kv * keys.headSize, kv * values.headSize]
      t.stacked(
        "\(at.mixer).qkvf", at.attn,
        zip(["q_proj", "k_proj", "v_proj"], rows).map { ($0, $1) } + [("f_proj", kv * slots)])
      t.convolutions(
        "\(at.mixer).convolution", at.attn,
        zip(["q_conv1d", "k_conv1d", "v_conv1d"], rows).map { ($0, $1) },
        taps: options.convolution)
      if map == "t2r" {
        t.linear("\(at.mixer).features.layer", "\(at.attn).feature_map.layer")
      }
      t.linear("\(at.mixer).output", "\(at.attn).o_proj")
      if options.normWeight { t.same("\(at.mixer).norm.weight", "\(at.attn).g_norm.weight") }
    }
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    model.flaFields("gsa", "GSA", GatedSlotAttention.self) { o in
      [
        "num_heads": .integer(o.heads), "num_kv_heads": .integer(o.keyHeads),
        "expand_k": .number(o.keyExpansion), "expand_v": .number(o.valueExpansion),
        "num_slots": .integer(o.slots),
        "feature_map": .string(o.featureMap == "silu" ? "swish" : o.featureMap),
        "gate_logit_normalizer": .number(o.gateDivisor),
        "elementwise_affine": .bool(o.normWeight),
      ].merging(ForeignConfiguration.shortConvolution(o.convolution)) { a, _ in a }
    }
  }
}

extension ForeignConfiguration {
  /// `expand_k`, or `exapnd_k` as the library's constructor spells it.
  func misspelled(_ key: String) -> String {
    has(key) ? key : key.replacing("expand", with: "exapnd")
  }

  /// `num_slots`; null stands for the key channels of a head.
  func slots(_ keySize: Int) throws(ConfigurationError) -> Int {
    isNull("num_slots") ? keySize : try count("num_slots", default: 64)
  }
}

/// flash-linear-attention `abc`; see `BoundedMemoryAttention`.
public enum FlaABCFamily: CheckpointFamily {
  public static let name = "flash-linear-attention abc"
  public static let modelType: String? = "abc"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var layout = try FlaLayout(c)
    let width = layout.model.width
    var o = BoundedMemoryAttention.Configuration()
    o.heads = try c.count("num_heads", default: 4)
    let keys = try c.expansion(
      c.misspelled("expand_k"), default: 0.5, of: width, heads: o.heads)
    let values = try c.expansion(
      c.misspelled("expand_v"), default: 1, of: width, heads: o.heads)
    (o.keyExpansion, o.valueExpansion) = (keys.ratio, values.ratio)
    let slots = try c.slots(keys.headSize)
    o.slots = slots
    o.logitFloor = c.isNull("clamp_min") ? nil : try c.double("clamp_min", default: -32)
    o.logitCeiling = c.isNull("clamp_max") ? nil : try c.double("clamp_max", default: 32)
    try c.require(
      (o.logitFloor ?? -.infinity) < (o.logitCeiling ?? .infinity), "clamp_min",
      "must be below clamp_max")
    o.rotates = try c.bool("use_rope", default: true)
    try c.require(
      !o.rotates || keys.headSize % 2 == 0, c.misspelled("expand_k"),
      "must give an even number of key channels a head, gives \(keys.headSize)")
    o.convolution = try c.shortConvolution(default: false)
    o.normWeight = try c.affine()
    o.normEpsilon = layout.model.normEpsilon
    let options = o
    return try layout.plan(BoundedMemoryAttention.self, o) { t, at in
      let rows = [keys.headSize, keys.headSize, values.headSize].map { $0 * options.heads }
      t.stacked(
        "\(at.mixer).qkvsg", at.attn,
        zip(["q_proj", "k_proj", "v_proj"], rows).map { ($0, $1) }
          + [("s_proj", options.heads * slots), ("g_proj", rows[2])])
      t.convolutions(
        "\(at.mixer).convolution", at.attn,
        zip(["q_conv1d", "k_conv1d", "v_conv1d"], rows).map { ($0, $1) },
        taps: options.convolution)
      t.linear("\(at.mixer).output", "\(at.attn).o_proj")
      if options.normWeight { t.same("\(at.mixer).norm.weight", "\(at.attn).g_norm.weight") }
      t.ignored("\(at.attn).rotary.inv_freq")
    }
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    model.flaFields("abc", "ABC", BoundedMemoryAttention.self) { o in
      [
        "num_heads": .integer(o.heads), "expand_k": .number(o.keyExpansion),
        "expand_v": .number(o.valueExpansion), "num_slots": .integer(o.slots),
        "clamp_min": o.logitFloor.map { .number($0) } ?? .null,
        "clamp_max": o.logitCeiling.map { .number($0) } ?? .null,
        "use_rope": .bool(o.rotates), "elementwise_affine": .bool(o.normWeight),
      ].merging(ForeignConfiguration.shortConvolution(o.convolution)) { a, _ in a }
    }
  }
}
