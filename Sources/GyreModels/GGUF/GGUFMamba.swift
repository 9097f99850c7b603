import GyreCheckpoints
import GyreLayers
import GyreTensors

/// What both Mamba architectures share: files hold A itself, the public layouts ln(−A).
enum GGUFMambaParts {
  static func add(
    _ map: inout GGUFMap, _ c: ForeignConfiguration, layers: Int, names: [(String, String)],
    shapes: [String: Shape]
  ) throws(ConfigurationError) {
    map.add("backbone.embeddings.weight", "token_embd.weight")
    map.add("backbone.norm_f.weight", "output_norm.weight")
    map.add("lm_head.weight", "output.weight")
    for i in 0..<layers {
      let (theirs, ours) = ("backbone.layers.\(i)", "blk.\(i)")
      map.add("\(theirs).norm.weight", "\(ours).attn_norm.weight")
      for (a, b) in names { map.add("\(theirs).mixer.\(a)", "\(ours).\(b)", stored: shapes[b]) }
      map.add("\(theirs).mixer.A_log", "\(ours).ssm_a", .all, decay, stored: shapes["ssm_a"])
    }
  }

  /// −exp and its inverse.
  static let decay = GGUFMap.Change.values(
    read: { Float(Functions.log(Double(-$0))) }, write: { Float(-Functions.exp(Double($0))) })

  static func common(_ m: GGUFMetadata) throws(ConfigurationError) -> [String: JSONValue] {
    [
      "vocab_size": .integer(try m.rows("token_embd.weight")),
      "hidden_size": .integer(try m.int("embedding_length")),
      "num_hidden_layers": .integer(try m.layerCount),
      "state_size": .integer(try m.int("ssm.state_size")),
      "conv_kernel": .integer(try m.int("ssm.conv_kernel")),
      "layer_norm_epsilon": .number(try m.double("attention.layer_norm_rms_epsilon")),
      "tie_word_embeddings": .bool(!m.has("output.weight")),
      "use_conv_bias": .bool(m.has("blk.0.ssm_conv1d.bias")), "use_bias": .bool(false),
      "hidden_act": .string("silu"),
    ]
  }

  static func metadata(
    _ c: ForeignConfiguration, width: Int, inner: Int, state: Int, layers: Int, rank: Int,
    vocabulary: Int
  ) throws(ConfigurationError) -> [(String, GGUFValue)] {
    try require(
      try !c.bool("use_bias", default: false), "use_bias",
      "must be false: GGUF's Mamba has no biases of its projections")
    return [
      ("block_count", .integer(layers)), ("context_length", .integer(1 << 20)),
      ("embedding_length", .integer(width)), ("feed_forward_length", .integer(0)),
      ("attention.head_count", .integer(0)),
      (
        "attention.layer_norm_rms_epsilon",
        .float(try c.double("layer_norm_epsilon", default: 1e-5))
      ),
      ("ssm.conv_kernel", .integer(try c.int("conv_kernel", default: 4))),
      ("ssm.inner_size", .integer(inner)), ("ssm.state_size", .integer(state)),
      ("ssm.time_step_rank", .integer(rank)), ("vocab_size", .integer(vocabulary)),
    ]
  }

  static func expansion(_ m: GGUFMetadata) throws(ConfigurationError) -> (inner: Int, factor: Int) {
    let (inner, width) = (try m.int("ssm.inner_size"), try m.int("embedding_length"))
    try require(
      width > 0 && inner > 0 && inner % width == 0, "\(m.architecture).ssm.inner_size",
      "must be a multiple of the width \(width), is \(inner)")
    return (inner, inner / width)
  }
}

enum GGUFMamba: GGUFArchitecture {
  static let names = ["mamba"]
  static let families: [any CheckpointFamily.Type] = [MambaFamily.self, FalconMambaFamily.self]

  static func configuration(
    _ m: GGUFMetadata
  ) throws(ConfigurationError) -> [String: JSONValue] {
    var config = try GGUFMambaParts.common(m)
    let normed = m["ssm.dt_b_c_rms"]?.bool ?? false
    config["model_type"] = .string(normed ? "falcon_mamba" : "mamba")
    config["expand"] = .integer(try GGUFMambaParts.expansion(m).factor)
    config["time_step_rank"] = .integer(try m.int("ssm.time_step_rank"))
    return config
  }

  static func map(_ c: ForeignConfiguration, _ map: inout GGUFMap) throws(ConfigurationError) {
    let inner = try c.expanded("expand", width: try c.width(default: 768))
    let layers = try c.layerCount("num_hidden_layers", default: 32)
    try GGUFMambaParts.add(
      &map, c, layers: layers,
      names: [
        ("in_proj.weight", "ssm_in.weight"), ("conv1d.weight", "ssm_conv1d.weight"),
        ("conv1d.bias", "ssm_conv1d.bias"), ("x_proj.weight", "ssm_x.weight"),
        ("dt_proj.weight", "ssm_dt.weight"), ("dt_proj.bias", "ssm_dt.bias"), ("D", "ssm_d"),
        ("out_proj.weight", "ssm_out.weight"),
      ], shapes: [:])
    for i in 0..<layers {
      map.add(
        "backbone.layers.\(i).mixer.conv1d.weight", "blk.\(i).ssm_conv1d.weight",
        stored: [inner, try c.int("conv_kernel", default: 4)])
    }
  }

  static func metadata(
    _ c: ForeignConfiguration
  ) throws(ConfigurationError) -> [(String, GGUFValue)] {
    let width = try c.width(default: 768)
    let isFalcon = c["model_type"]?.text == "falcon_mamba"
    return try GGUFMambaParts.metadata(
      c, width: width, inner: try c.expanded("expand", width: width),
      state: try c.count("state_size", default: 16),
      layers: try c.layerCount("num_hidden_layers", default: 32),
      rank: try c.stepRank("time_step_rank", width: width),
      vocabulary: try c.vocabulary(default: 50280)) + [("ssm.dt_b_c_rms", .bool(isFalcon))]
  }
}

enum GGUFMamba2: GGUFArchitecture {
  static let names = ["mamba2"]
  static let families: [any CheckpointFamily.Type] = [Mamba2Family.self]

  static func configuration(
    _ m: GGUFMetadata
  ) throws(ConfigurationError) -> [String: JSONValue] {
    var config = try GGUFMambaParts.common(m)
    let (inner, factor) = try GGUFMambaParts.expansion(m)
    let heads = try m.int("ssm.time_step_rank")
    try require(
      heads > 0 && inner % heads == 0, "mamba2.ssm.time_step_rank",
      "must divide the inner width \(inner), is \(heads)")
    config["model_type"] = .string("mamba2")
    config["expand"] = .integer(factor)
    config["num_heads"] = .integer(heads)
    config["head_dim"] = .integer(inner / heads)
    config["n_groups"] = .integer(try m.int("ssm.group_count", default: 1))
    return config
  }

  static func map(_ c: ForeignConfiguration, _ map: inout GGUFMap) throws(ConfigurationError) {
    let heads = try c.count("num_heads", default: 128)
    let inner = heads * (try c.count("head_dim", default: 64))
    let groups = try c.count("n_groups", default: 8)
    let channels = inner + 2 * groups * (try c.count("state_size", default: 128))
    try GGUFMambaParts.add(
      &map, c, layers: try c.layerCount("num_hidden_layers", default: 64),
      names: [
        ("in_proj.weight", "ssm_in.weight"), ("conv1d.weight", "ssm_conv1d.weight"),
        ("conv1d.bias", "ssm_conv1d.bias"), ("dt_bias", "ssm_dt.bias"), ("D", "ssm_d"),
        ("norm.weight", "ssm_norm.weight"), ("out_proj.weight", "ssm_out.weight"),
      ],
      shapes: [
        "ssm_conv1d.weight": [channels, try c.int("conv_kernel", default: 4)],
        "ssm_a": [heads, 1], "ssm_d": [heads, 1], "ssm_norm.weight": [groups, inner / groups],
      ])
  }

  static func metadata(
    _ c: ForeignConfiguration
  ) throws(ConfigurationError) -> [(String, GGUFValue)] {
    let heads = try c.count("num_heads", default: 128)
    let limits = try c.doubles("time_step_limit", default: [0, .infinity])
    try require(
      limits == [0, .infinity], "time_step_limit", "must be [0, ∞]: GGUF's mamba2 has no limits")
    return try GGUFMambaParts.metadata(
      c, width: try c.width(default: 4096), inner: heads * (try c.count("head_dim", default: 64)),
      state: try c.count("state_size", default: 128),
      layers: try c.layerCount("num_hidden_layers", default: 64), rank: heads,
      vocabulary: try c.vocabulary(default: 32768))
      + [("ssm.group_count", .integer(try c.count("n_groups", default: 8)))]
  }
}
