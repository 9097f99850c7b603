import GyreLayers
import GyreMixers

/// flash-linear-attention `delta_net`; see `DeltaNet`.
public enum FlaDeltaNetFamily: CheckpointFamily {
  public static let name = "flash-linear-attention delta_net"
  public static let modelType: String? = "delta_net"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var layout = try FlaLayout(c)
    let width = layout.model.width
    var o = DeltaNet.Configuration()
    o.heads = try c.count("num_heads", default: 16)
    let keys = try c.expansion("expand_k", default: 1, of: width, heads: o.heads)
    let values = try c.expansion("expand_v", default: 1, of: width, heads: o.heads)
    (o.keyExpansion, o.valueExpansion) = (keys.ratio, values.ratio)
    o.convolution = try c.shortConvolution(default: true)
    o.negativeEigenvalues = try c.bool("allow_neg_eigval", default: false)
    o.gatesOutput = try c.bool("use_gate", default: false)
    o.learnsStrength = try c.bool("use_beta", default: true)
    o.keyActivation = try c.choice(
      "qk_activation", default: "silu", among: ["silu", "relu", "elu", "identity"])
    o.keyNorm = try c.choice("qk_norm", default: "l2", among: ["l2", "sum"])
    o.normEpsilon = layout.model.normEpsilon
    let options = o
    return try layout.plan(DeltaNet.self, o) { t, at in
      let rows = [keys.headSize, keys.headSize, values.headSize].map { $0 * options.heads }
      t.stacked(
        "\(at.mixer).qkv", at.attn,
        zip(["q_proj", "k_proj", "v_proj"], rows).map { ($0, $1) }
          + (options.gatesOutput ? [("g_proj", rows[2])] : []))
      t.convolutions(
        "\(at.mixer).convolution", at.attn,
        zip(["q_conv1d", "k_conv1d", "v_conv1d"], rows).map { ($0, $1) },
        taps: options.convolution)
      if options.learnsStrength { t.linear("\(at.mixer).beta", "\(at.attn).b_proj") }
      t.linear("\(at.mixer).output", "\(at.attn).o_proj")
      t.same("\(at.mixer).norm.weight", "\(at.attn).o_norm.weight")
    }
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    model.flaFields("delta_net", "DeltaNet", DeltaNet.self) { o in
      [
        "num_heads": .integer(o.heads), "expand_k": .number(o.keyExpansion),
        "expand_v": .number(o.valueExpansion), "allow_neg_eigval": .bool(o.negativeEigenvalues),
        "use_gate": .bool(o.gatesOutput), "use_beta": .bool(o.learnsStrength),
        "qk_activation": .string(o.keyActivation), "qk_norm": .string(o.keyNorm),
      ].merging(ForeignConfiguration.shortConvolution(o.convolution)) { a, _ in a }
    }
  }
}

extension ForeignConfiguration {
  /// One of a few words.
  func choice(
    _ key: String, default fallback: String, among known: [String]
  ) throws(ConfigurationError) -> String {
    let word = try string(key, default: fallback)
    try require(
      known.contains(word), key, "must be one of \(known), is \"\(word.prefix(40))\"")
    return word
  }

  /// `head_dim`, `num_heads`, `num_v_heads` and `expand_v`, of the layers whose heads do not depend
  /// on the model's width.
  func valueHeads(
    headSize: Int, heads: Int, expansion fallback: Double
  ) throws(ConfigurationError) -> FlaHeads {
    let size = try count("head_dim", default: headSize)
    let keyHeads = try count("num_heads", default: heads)
    let valueHeads = has("num_v_heads") ? try count("num_v_heads") : keyHeads
    try require(
      valueHeads % keyHeads == 0, "num_v_heads",
      "must be a multiple of num_heads \(keyHeads), is \(valueHeads)")
    let values = try expansion("expand_v", default: fallback, of: size, heads: 1)
    return FlaHeads(
      size: size, keyHeads: keyHeads, heads: valueHeads, valueSize: values.headSize,
      valueExpansion: values.ratio)
  }
}

/// Sizes of the gated delta rules' heads.
struct FlaHeads {
  var size, keyHeads, heads, valueSize: Int
  var valueExpansion: Double
  var keys: Int { keyHeads * size }
  var values: Int { heads * valueSize }
}

extension TensorMap {
  /// q, k and v with their convolutions, and an output gate where there is one.
  mutating func streams(
    _ ours: String, _ at: FlaLayout.Place, rows: [Int], gate: Int?, taps: Int
  ) {
    stacked(
      "\(at.mixer).\(ours)", at.attn,
      zip(["q_proj", "k_proj", "v_proj"], rows).map { ($0, $1) }
        + (gate.map { [("g_proj", $0)] } ?? []))
    convolutions(
      "\(at.mixer).convolution", at.attn,
      zip(["q_conv1d", "k_conv1d", "v_conv1d"], rows).map { ($0, $1) }, taps: taps)
  }
}

/// flash-linear-attention `gated_deltanet`; see `GatedDeltaNet`.
public enum FlaGatedDeltaNetFamily: CheckpointFamily {
  public static let name = "flash-linear-attention gated_deltanet"
  public static let modelType: String? = "gated_deltanet"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var layout = try FlaLayout(c, layers: 21)
    let heads = try c.valueHeads(headSize: 256, heads: 6, expansion: 2)
    var o = GatedDeltaNet.Configuration()
    o.headSize = heads.size
    o.heads = heads.keyHeads
    o.valueHeads = heads.heads
    o.valueExpansion = heads.valueExpansion
    o.convolution = try c.shortConvolution(default: true)
    o.negativeEigenvalues = try c.bool("allow_neg_eigval", default: false)
    o.gatesOutput = try c.bool("use_gate", default: true)
    o.gateActivation = try c.activation(
      "output_gate_activation", default: "swish", among: ["silu", "sigmoid"])
    o.normEpsilon = layout.model.normEpsilon
    let options = o
    return try layout.plan(GatedDeltaNet.self, o) { t, at in
      t.streams(
        "qkvg", at, rows: [heads.keys, heads.keys, heads.values],
        gate: options.gatesOutput ? heads.values : nil, taps: options.convolution)
      t.stacked(
        "\(at.mixer).gates", at.attn, [("a_proj", heads.heads), ("b_proj", heads.heads)])
      t.same("\(at.mixer).A_log", "\(at.attn).A_log")
      t.same("\(at.mixer).dt_bias", "\(at.attn).dt_bias")
      t.linear("\(at.mixer).output", "\(at.attn).o_proj")
      t.same("\(at.mixer).norm.weight", "\(at.attn).o_norm.weight")
    }
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    model.flaFields("gated_deltanet", "GatedDeltaNet", GatedDeltaNet.self) { o in
      [
        "head_dim": .integer(o.headSize), "num_heads": .integer(o.heads),
        "num_v_heads": .integer(o.valueHeads), "expand_v": .number(o.valueExpansion),
        "allow_neg_eigval": .bool(o.negativeEigenvalues), "use_gate": .bool(o.gatesOutput),
        "output_gate_activation": .string(FlaLayout.activation(named: o.gateActivation)),
      ].merging(ForeignConfiguration.shortConvolution(o.convolution)) { a, _ in a }
    }
  }
}

/// flash-linear-attention `gated_deltaproduct`; see `GatedDeltaProduct`.
public enum FlaGatedDeltaProductFamily: CheckpointFamily {
  public static let name = "flash-linear-attention gated_deltaproduct"
  public static let modelType: String? = "gated_deltaproduct"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var layout = try FlaLayout(c, layers: 21)
    var heads = try c.valueHeads(headSize: 256, heads: 6, expansion: 2)
    // The blocks do not pass num_v_heads on.
    heads.heads = heads.keyHeads
    var o = GatedDeltaProduct.Configuration()
    o.headSize = heads.size
    o.heads = heads.keyHeads
    o.valueExpansion = heads.valueExpansion
    o.reflections = try c.int("num_householder", default: 1, in: 1...64)
    o.convolution = try c.shortConvolution(default: true)
    o.decays = try c.bool("use_forget_gate", default: false)
    o.negativeEigenvalues = try c.bool("allow_neg_eigval", default: false)
    o.gatesOutput = try c.bool("use_output_gate", default: true)
    o.normEpsilon = layout.model.normEpsilon
    let (options, sizes) = (o, heads)
    return try layout.plan(GatedDeltaProduct.self, o) { t, at in
      let n = options.reflections
      t.streams(
        "qkvg", at, rows: [sizes.keys, n * sizes.keys, n * sizes.values],
        gate: options.gatesOutput ? sizes.values : nil, taps: options.convolution)
      t.linear("\(at.mixer).beta", "\(at.attn).b_proj")
      if options.decays {
        t.linear("\(at.mixer).decay", "\(at.attn).a_proj")
        t.same("\(at.mixer).A_log", "\(at.attn).A_log")
        t.same("\(at.mixer).dt_bias", "\(at.attn).dt_bias")
      }
      t.linear("\(at.mixer).output", "\(at.attn).o_proj")
      t.same("\(at.mixer).norm.weight", "\(at.attn).o_norm.weight")
    }
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    model.flaFields("gated_deltaproduct", "GatedDeltaProduct", GatedDeltaProduct.self) { o in
      [
        "head_dim": .integer(o.headSize), "num_heads": .integer(o.heads),
        "expand_v": .number(o.valueExpansion), "num_householder": .integer(o.reflections),
        "use_forget_gate": .bool(o.decays), "allow_neg_eigval": .bool(o.negativeEigenvalues),
        "use_output_gate": .bool(o.gatesOutput),
      ].merging(ForeignConfiguration.shortConvolution(o.convolution)) { a, _ in a }
    }
  }
}

/// flash-linear-attention `kda`; see `KimiDeltaAttention`.
public enum FlaKDAFamily: CheckpointFamily {
  public static let name = "flash-linear-attention kda"
  public static let modelType: String? = "kda"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var layout = try FlaLayout(c)
    let heads = try c.valueHeads(headSize: 128, heads: 16, expansion: 1)
    var o = KimiDeltaAttention.Configuration()
    o.headSize = heads.size
    o.heads = heads.keyHeads
    o.valueHeads = heads.heads
    o.valueExpansion = heads.valueExpansion
    o.convolution = try c.shortConvolution(default: true)
    o.negativeEigenvalues = try c.bool("allow_neg_eigval", default: false)
    if c.has("lower_bound") {
      let bound = try c.double("lower_bound")
      try c.require(bound < 0, "lower_bound", "must be negative, is \(bound)")
      o.gateFloor = bound
    } else {
      let isSafe = try c.bool("safe_gate", default: false)
      try c.require(!isSafe, "lower_bound", "must be given where safe_gate is true")
    }
    o.normEpsilon = layout.model.normEpsilon
    let options = o
    return try layout.plan(KimiDeltaAttention.self, o) { t, at in
      t.streams(
        "qkv", at, rows: [heads.keys, heads.keys, heads.values], gate: nil,
        taps: options.convolution)
      t.linear("\(at.mixer).decay.down", "\(at.attn).f_proj.0")
      t.linear("\(at.mixer).decay.up", "\(at.attn).f_proj.1")
      t.same("\(at.mixer).A_log", "\(at.attn).A_log")
      t.same("\(at.mixer).dt_bias", "\(at.attn).dt_bias")
      t.linear("\(at.mixer).beta", "\(at.attn).b_proj")
      t.linear("\(at.mixer).gate.down", "\(at.attn).g_proj.0")
      t.linear("\(at.mixer).gate.up", "\(at.attn).g_proj.1", bias: true)
      t.linear("\(at.mixer).output", "\(at.attn).o_proj")
      t.same("\(at.mixer).norm.weight", "\(at.attn).o_norm.weight")
    }
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    model.flaFields("kda", "KDA", KimiDeltaAttention.self) { o in
      [
        "head_dim": .integer(o.headSize), "num_heads": .integer(o.heads),
        "num_v_heads": .integer(o.valueHeads), "expand_v": .number(o.valueExpansion),
        "allow_neg_eigval": .bool(o.negativeEigenvalues),
        "safe_gate": .bool((o.gateFloor ?? -6) >= -5),
        "lower_bound": o.gateFloor.map { .number($0) } ?? .null,
      ].merging(ForeignConfiguration.shortConvolution(o.convolution)) { a, _ in a }
    }
  }
}
