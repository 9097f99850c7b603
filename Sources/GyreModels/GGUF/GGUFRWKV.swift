import GyreCheckpoints
import GyreLayers
import GyreMixers
import GyreTensors

/// What RWKV-6 and RWKV-7 share.
private enum GGUFRWKVParts {
  static func stack(_ map: inout GGUFMap, layers: Int) {
    map.add("model.embeddings.weight", "token_embd.weight")
    map.add("lm_head.weight", "output.weight")
    for kind in ["weight", "bias"] {
      map.add("model.norm.\(kind)", "output_norm.\(kind)")
      map.add("model.layers.0.pre_norm.\(kind)", "token_embd_norm.\(kind)")
    }
    for i in 0..<layers {
      let (layer, ours) = ("model.layers.\(i)", "blk.\(i)")
      for kind in ["weight", "bias"] {
        map.add("\(layer).attn.g_norm.\(kind)", "\(ours).time_mix_ln.\(kind)")
        map.add("\(layer).attn_norm.\(kind)", "\(ours).attn_norm.\(kind)")
        map.add("\(layer).ffn_norm.\(kind)", "\(ours).attn_norm_2.\(kind)")
      }
    }
  }

  static func configuration(
    _ m: GGUFMetadata
  ) throws(ConfigurationError) -> [String: JSONValue] {
    [
      "model_type": .string(m.architecture),
      "vocab_size": .integer(try m.rows("token_embd.weight")),
      "hidden_size": .integer(try m.int("embedding_length")),
      "num_hidden_layers": .integer(try m.layerCount),
      "intermediate_size": .integer(try m.int("feed_forward_length")),
      "norm_eps": .number(try m.double("attention.layer_norm_epsilon")),
      "norm_first": .bool(true), "norm_bias": .bool(true), "hidden_act": .string("sqrelu"),
      "tie_word_embeddings": .bool(!m.has("output.weight")), "fuse_norm": .bool(false),
    ]
  }

  static func metadata(
    _ c: ForeignConfiguration, headSize: Int, ratio: Double
  ) throws(ConfigurationError) -> [(String, GGUFValue)] {
    let stack = try RWKVStack(c)
    for key in ["norm_first", "norm_bias"] {
      try require(
        try c.bool(key, default: true), key, "must be true: GGUF's RWKV has these norms and biases")
    }
    try require(
      try c.string("hidden_act", default: "sqrelu") == "sqrelu", "hidden_act",
      "must be sqrelu: GGUF's RWKV has no other")
    try require(c["attn"] == nil, "attn", "must be absent: GGUF's RWKV has no attention layers")
    return [
      ("block_count", .integer(stack.model.layers)), ("context_length", .integer(1 << 20)),
      ("embedding_length", .integer(stack.model.width)),
      ("feed_forward_length", .integer(try stack.hidden(c, ratio: ratio))),
      ("attention.head_count", .integer(0)),
      ("attention.layer_norm_epsilon", .float(stack.model.normEpsilon)),
      ("wkv.head_size", .integer(headSize)), ("vocab_size", .integer(stack.model.vocabulary)),
    ]
  }
}

/// RWKV-6: the file keeps the token-shift weights of all maps in one tensor, and the second matrix of
/// their low-rank map by blocks.
enum GGUFRWKV6: GGUFArchitecture {
  static let names = ["rwkv6"]
  static let families: [any CheckpointFamily.Type] = [RWKV6Family.self]
  /// The mean and variance of heads are taken with this epsilon whatever the file says.
  static let headEpsilon = 64e-5

  static func configuration(
    _ m: GGUFMetadata
  ) throws(ConfigurationError) -> [String: JSONValue] {
    var config = try GGUFRWKVParts.configuration(m)
    let (width, size) = (try m.int("embedding_length"), try m.count("wkv.head_size"))
    try require(
      width % size == 0, "rwkv6.wkv.head_size", "must divide the width \(width), is \(size)")
    config["num_heads"] = .integer(width / size)
    config["expand_k"] = .number(1)
    config["expand_v"] = .number(1)
    config["proj_low_rank_dim"] = .integer(try m.count("time_mix_extra_dim"))
    config["gate_low_rank_dim"] = .integer(try m.count("time_decay_extra_dim"))
    config["head_norm_eps"] = .number(headEpsilon)
    config["rescale_every"] = .integer(try m.int("rescale_every_n_layers", default: 0))
    return config
  }

  static func map(_ c: ForeignConfiguration, _ map: inout GGUFMap) throws(ConfigurationError) {
    let (width, rank) = (
      try c.width(default: 2048), try c.count("proj_low_rank_dim", default: 32)
    )
    let layers = try c.layerCount("num_hidden_layers", default: 24)
    let heads = try c.count("num_heads", default: 4)
    // Files divide what is added to the stream by a power of two that grows every few layers.
    let every = try c.int("rescale_every", default: 0)
    // Order of maps: r, w, k, v, g in the public layout; w, k, v, r, g in files.
    let places = [3, 0, 1, 2, 4]
    let count = width.multipliedReportingOverflow(by: 5 * rank)
    try require(
      !count.overflow && count.partialValue <= 1 << 28, "proj_low_rank_dim", "is too large")
    var up: [Int] = []
    up.reserveCapacity(count.partialValue)
    for h in 0..<width {
      for n in 0..<5 { for j in 0..<rank { up.append((places[n] * width + h) * rank + j) } }
    }
    GGUFRWKVParts.stack(&map, layers: layers)
    for i in 0..<layers {
      let (attn, ffn, ours) = ("model.layers.\(i).attn", "model.layers.\(i).ffn", "blk.\(i)")
      for (a, b) in [("r", "receptance"), ("k", "key"), ("v", "value"), ("g", "gate")] {
        map.add("\(attn).\(a)_proj.linear.weight", "\(ours).time_mix_\(b).weight")
      }
      let rescale = rescaling(every > 0 ? i / every : 0)
      map.add("\(attn).o_proj.weight", "\(ours).time_mix_output.weight", .all, rescale)
      map.add(
        "\(attn).x_proj.0.mu", "\(ours).time_mix_lerp_x.weight", shape: [width],
        stored: [1, 1, width])
      map.add("\(attn).x_proj.0.linear.weight", "\(ours).time_mix_w1.weight")
      map.add(
        "\(attn).x_proj.2.weight", "\(ours).time_mix_w2.weight", .all, .elements(up),
        shape: [width, 5 * rank], stored: [5, width, rank])
      map.add(
        "\(attn).x_bias", "\(ours).time_mix_lerp_fused.weight", .order(places), shape: [5, width],
        stored: [5, 1, 1, width])
      map.add("\(attn).w_proj.linear.lora.0.weight", "\(ours).time_mix_decay_w1.weight")
      map.add("\(attn).w_proj.linear.lora.2.weight", "\(ours).time_mix_decay_w2.weight")
      map.add("\(attn).w_proj.linear.lora.2.bias", "\(ours).time_mix_decay.weight")
      map.add(
        "\(attn).bonus", "\(ours).time_mix_first.weight", shape: [heads, width / heads],
        stored: [heads, width / heads])
      for (a, b) in [("r", "receptance"), ("k", "key")] {
        map.add(
          "\(ffn).\(b).mu", "\(ours).channel_mix_lerp_\(a).weight", shape: [width],
          stored: [1, 1, width])
        map.add("\(ffn).\(b).linear.weight", "\(ours).channel_mix_\(b).weight")
      }
      map.add("\(ffn).value.weight", "\(ours).channel_mix_value.weight", .all, rescale)
    }
  }

  private static func rescaling(_ steps: Int) -> GGUFMap.Change {
    guard steps > 0 else { return .none }
    let factor = Float(Functions.pow(2, Double(min(steps, 126))))
    return .values(read: { $0 * factor }, write: { $0 / factor })
  }

  static func metadata(
    _ c: ForeignConfiguration
  ) throws(ConfigurationError) -> [(String, GGUFValue)] {
    let (width, heads) = (try c.width(default: 2048), try c.count("num_heads", default: 4))
    let expansions = [
      try c.double("expand_k", default: 0.5), try c.double("expand_v", default: 1),
    ]
    try require(
      expansions == [1, 1], "expand_k", "must be 1, and expand_v too: GGUF's rwkv6 has square maps")
    try require(
      abs(
        try c.double("head_norm_eps", default: try c.double("norm_eps", default: 1e-5))
          - headEpsilon) < 1e-9, "head_norm_eps",
      "must be \(headEpsilon): GGUF's rwkv6 norms heads with that")
    return try GGUFRWKVParts.metadata(c, headSize: width / heads, ratio: 3.5) + [
      ("time_mix_extra_dim", .integer(try c.count("proj_low_rank_dim", default: 32))),
      ("time_decay_extra_dim", .integer(try c.count("gate_low_rank_dim", default: 64))),
      ("rescale_every_n_layers", .integer(try c.int("rescale_every", default: 0))),
    ]
  }
}

/// RWKV-7: the file keeps the token-shift weights of all maps in one tensor.
enum GGUFRWKV7: GGUFArchitecture {
  static let names = ["rwkv7"]
  static let families: [any CheckpointFamily.Type] = [RWKV7Family.self]

  static func configuration(
    _ m: GGUFMetadata
  ) throws(ConfigurationError) -> [String: JSONValue] {
    var config = try GGUFRWKVParts.configuration(m)
    config["head_dim"] = .integer(try m.int("wkv.head_size"))
    for (ours, theirs) in ranks {
      config[ours] = .integer(try m.int("attention.\(theirs)_rank"))
    }
    return config
  }

  private static let ranks = [
    ("decay_low_rank_dim", "decay_lora"), ("a_low_rank_dim", "iclr_lora"),
    ("v_low_rank_dim", "value_residual_mix_lora"), ("gate_low_rank_dim", "gate_lora"),
  ]

  static func map(_ c: ForeignConfiguration, _ map: inout GGUFMap) throws(ConfigurationError) {
    let (layers, width) = (
      try c.layerCount("num_hidden_layers", default: 24), try c.width(default: 2048)
    )
    GGUFRWKVParts.stack(&map, layers: layers)
    for i in 0..<layers {
      let (theirs, ffn, ours) = ("model.layers.\(i).attn", "model.layers.\(i).ffn", "blk.\(i)")
      for (a, b) in [("r", "receptance"), ("k", "key"), ("v", "value"), ("o", "output")] {
        map.add("\(theirs).\(a)_proj.weight", "\(ours).time_mix_\(b).weight")
      }
      for (j, name) in ["r", "w", "k", "v", "a", "g"].enumerated() {
        map.add(
          "\(theirs).x_\(name)", "\(ours).time_mix_lerp_fused.weight", .range(j..<j + 1),
          shape: [1, 1, width], stored: [6, 1, 1, width])
      }
      for name in ["w", "a", "v", "g"] {
        if name == "v", i == 0 {
          // The first layer has no residual value; files repeat other tensors in its place.
          for part in 0...2 {
            map.ignore(
              "\(ours).time_mix_v\(part).weight", writing: "\(ours).time_mix_a\(part).weight")
          }
          continue
        }
        map.add("\(theirs).\(name)_lora.lora.0.weight", "\(ours).time_mix_\(name)1.weight")
        map.add("\(theirs).\(name)_lora.lora.2.weight", "\(ours).time_mix_\(name)2.weight")
        if name != "g" {
          map.add("\(theirs).\(name)_lora.lora.2.bias", "\(ours).time_mix_\(name)0.weight")
        }
      }
      for name in ["k_k", "k_a", "r_k"] {
        map.add("\(theirs).\(name)", "\(ours).time_mix_\(name).weight", stored: [width])
      }
      map.add(
        "\(ffn).x_k", "\(ours).channel_mix_lerp_k.weight", shape: [width], stored: [1, 1, width])
      map.add("\(ffn).key.weight", "\(ours).channel_mix_key.weight")
      map.add("\(ffn).value.weight", "\(ours).channel_mix_value.weight")
    }
  }

  static func metadata(
    _ c: ForeignConfiguration
  ) throws(ConfigurationError) -> [(String, GGUFValue)] {
    let plan = try RWKV7Family.plan(c)
    guard let mixer = plan.model.uniform(RWKV7.self), mixer.valueWidth == plan.model.width else {
      throw ConfigurationError(
        "value_dim", "must be hidden_size in all layers to be written as GGUF")
    }
    return try GGUFRWKVParts.metadata(c, headSize: mixer.headSize, ratio: 4)
      + zip(ranks, [mixer.decayRank, mixer.rateRank, mixer.valueRank, mixer.gateRank]).map {
        ("attention.\($0.0.1)_rank", .integer($0.1))
      }
  }
}
