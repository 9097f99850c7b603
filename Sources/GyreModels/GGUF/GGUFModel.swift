import GyreCheckpoints
import GyreLayers
import GyreTensors

/// An architecture of GGUF files: which public layout its metadata and tensors are, in other words.
protocol GGUFArchitecture: Sendable {
  /// Values of `general.architecture`.
  static var names: [String] { get }
  /// The public layout's `config.json`, and where its tensors lie in the file.
  ///
  /// - Throws: the metadata key that is missing or cannot be.
  static func translate(
    _ m: GGUFMetadata, _ map: inout GGUFMap
  ) throws(ConfigurationError) -> [String: JSONValue]
}

/// A GGUF file read as the public layout that it was made from: configuration and tensors under
/// that layout's names.
struct GGUFModel: Sendable {
  static let architectures: [any GGUFArchitecture.Type] = [
    GGUFLlama.self, GGUFMamba.self, GGUFMamba2.self, GGUFRWKV7.self,
  ]

  let configuration: JSONValue
  let tensors: GGUFTensors

  /// - Throws: an architecture that is not known, a key of the metadata that is missing or wrong.
  init(_ file: GGUFFile) throws(ConfigurationError) {
    let known = Self.architectures.flatMap { $0.names }
    guard let name = file.architecture,
      let architecture = Self.architectures.first(where: { $0.names.contains(name) })
    else {
      throw ConfigurationError(
        "general.architecture",
        "must be one of \(known), is \(file.architecture.map { "\"\($0)\"" } ?? "missing")")
    }
    var map = GGUFMap()
    let metadata = GGUFMetadata(file: file, architecture: name)
    configuration = .object(try architecture.translate(metadata, &map))
    tensors = GGUFTensors(file, map)
  }
}

/// llama and models of its shape: rotary pairs lie interleaved in GGUF files, in halves in the
/// public layout.
enum GGUFLlama: GGUFArchitecture {
  static let names = ["llama"]

  static func translate(
    _ m: GGUFMetadata, _ map: inout GGUFMap
  ) throws(ConfigurationError) -> [String: JSONValue] {
    let (layers, width) = (try m.layerCount, try m.int("embedding_length"))
    let heads = try m.int("attention.head_count")
    try require(heads > 0, "llama.attention.head_count", "must be positive")
    let keyHeads = try m.int("attention.head_count_kv", default: heads)
    let size = try m.int(
      "attention.key_length", default: try m.int("rope.dimension_count", default: width / heads))
    try require(
      try m.int("attention.value_length", default: size) == size, "llama.attention.value_length",
      "must be the key length \(size)")
    try require(
      try m.int("rope.dimension_count", default: size) == size && size % 2 == 0 && size > 0,
      "llama.rope.dimension_count", "must be the even head size \(size)")
    try require(
      !m.has("rope_freqs.weight"), "rope_freqs.weight",
      "holds frequency factors, which are read from a config.json only; convert the original folder"
    )
    try require(
      try m.int("expert_count", default: 0) == 0, "llama.expert_count",
      "mixtures of experts are read from the original folder only")
    let tied = !m.has("output.weight")
    map.add("model.embed_tokens.weight", "token_embd.weight")
    map.add("model.norm.weight", "output_norm.weight")
    if !tied { map.add("lm_head.weight", "output.weight") }
    for i in 0..<layers {
      let (theirs, ours) = ("model.layers.\(i)", "blk.\(i)")
      map.add("\(theirs).input_layernorm.weight", "\(ours).attn_norm.weight")
      map.add("\(theirs).post_attention_layernorm.weight", "\(ours).ffn_norm.weight")
      for (a, b, n) in [("q", "attn_q", heads), ("k", "attn_k", keyHeads)] {
        for kind in ["weight", "bias"] {
          map.add(
            "\(theirs).self_attn.\(a)_proj.\(kind)", "\(ours).\(b).\(kind)",
            .rows(halves(heads: n, size: size)))
        }
      }
      for (a, b) in [("self_attn.v", "attn_v"), ("self_attn.o", "attn_output")]
        + ["gate", "up", "down"].map({ ("mlp.\($0)", "ffn_\($0)") })
      {
        for kind in ["weight", "bias"] {
          map.add("\(theirs).\(a)_proj.\(kind)", "\(ours).\(b).\(kind)")
        }
      }
      map.ignore("\(ours).attn_rot_embd")
    }
    var config: [String: JSONValue] = [
      "model_type": .string("llama"), "vocab_size": .integer(try m.rows("token_embd.weight")),
      "hidden_size": .integer(width), "num_hidden_layers": .integer(layers),
      "num_attention_heads": .integer(heads), "num_key_value_heads": .integer(keyHeads),
      "head_dim": .integer(size), "intermediate_size": .integer(try m.int("feed_forward_length")),
      "rms_norm_eps": .number(try m.double("attention.layer_norm_rms_epsilon")),
      "rope_theta": .number(try m.double("rope.freq_base", default: 10000)),
      "tie_word_embeddings": .bool(tied), "hidden_act": .string("silu"),
      "attention_bias": .bool(m.has("blk.0.attn_q.bias")),
      "mlp_bias": .bool(m.has("blk.0.ffn_up.bias")),
      "max_position_embeddings": .integer(try m.int("context_length", default: 2048)),
    ]
    if let kind = m["rope.scaling.type"]?.string, kind != "none" {
      var scaling: [String: JSONValue] = [
        "rope_type": .string(kind), "factor": .number(try m.double("rope.scaling.factor")),
      ]
      if m["rope.scaling.original_context_length"] != nil {
        scaling["original_max_position_embeddings"] = .integer(
          try m.int("rope.scaling.original_context_length"))
      }
      config["rope_scaling"] = .object(scaling)
    }
    return config
  }

  /// Row (head, half, i) of the public layout is row (head, i, half) of the file.
  private static func halves(heads: Int, size: Int) -> [Int] {
    (0..<heads).flatMap { head in
      (0..<2).flatMap { half in (0..<size / 2).map { head * size + 2 * $0 + half } }
    }
  }
}

/// What both Mamba architectures share: files hold A itself, the public layouts ln(−A).
private enum GGUFMambaParts {
  static func add(_ map: inout GGUFMap, layers: Int, tied: Bool, names: [(String, String)]) {
    map.add("backbone.embeddings.weight", "token_embd.weight")
    map.add("backbone.norm_f.weight", "output_norm.weight")
    if !tied { map.add("lm_head.weight", "output.weight") }
    for i in 0..<layers {
      let (theirs, ours) = ("backbone.layers.\(i)", "blk.\(i)")
      map.add("\(theirs).norm.weight", "\(ours).attn_norm.weight")
      for (a, b) in names { map.add("\(theirs).mixer.\(a)", "\(ours).\(b)") }
      map.add(
        "\(theirs).mixer.A_log", "\(ours).ssm_a", .values { Float(Functions.log(Double(-$0))) })
    }
  }

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

  static func translate(
    _ m: GGUFMetadata, _ map: inout GGUFMap
  ) throws(ConfigurationError) -> [String: JSONValue] {
    GGUFMambaParts.add(
      &map, layers: try m.layerCount, tied: !m.has("output.weight"),
      names: [
        ("in_proj.weight", "ssm_in.weight"), ("conv1d.weight", "ssm_conv1d.weight"),
        ("conv1d.bias", "ssm_conv1d.bias"), ("x_proj.weight", "ssm_x.weight"),
        ("dt_proj.weight", "ssm_dt.weight"), ("dt_proj.bias", "ssm_dt.bias"), ("D", "ssm_d"),
        ("out_proj.weight", "ssm_out.weight"),
      ])
    var config = try GGUFMambaParts.common(m)
    let normed = m["ssm.dt_b_c_rms"]?.bool ?? false
    config["model_type"] = .string(normed ? "falcon_mamba" : "mamba")
    config["expand"] = .integer(try GGUFMambaParts.expansion(m).factor)
    config["time_step_rank"] = .integer(try m.int("ssm.time_step_rank"))
    return config
  }
}

enum GGUFMamba2: GGUFArchitecture {
  static let names = ["mamba2"]

  static func translate(
    _ m: GGUFMetadata, _ map: inout GGUFMap
  ) throws(ConfigurationError) -> [String: JSONValue] {
    GGUFMambaParts.add(
      &map, layers: try m.layerCount, tied: !m.has("output.weight"),
      names: [
        ("in_proj.weight", "ssm_in.weight"), ("conv1d.weight", "ssm_conv1d.weight"),
        ("conv1d.bias", "ssm_conv1d.bias"), ("dt_bias", "ssm_dt.bias"), ("D", "ssm_d"),
        ("norm.weight", "ssm_norm.weight"), ("out_proj.weight", "ssm_out.weight"),
      ])
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
}

/// RWKV-7: the file keeps the token-shift weights of all maps in one tensor.
enum GGUFRWKV7: GGUFArchitecture {
  static let names = ["rwkv7"]

  static func translate(
    _ m: GGUFMetadata, _ map: inout GGUFMap
  ) throws(ConfigurationError) -> [String: JSONValue] {
    let (layers, width) = (try m.layerCount, try m.int("embedding_length"))
    map.add("model.embeddings.weight", "token_embd.weight")
    map.add("lm_head.weight", "output.weight")
    for kind in ["weight", "bias"] {
      map.add("model.norm.\(kind)", "output_norm.\(kind)")
      map.add("model.layers.0.pre_norm.\(kind)", "token_embd_norm.\(kind)")
    }
    for i in 0..<layers {
      let (layer, ours) = ("model.layers.\(i)", "blk.\(i)")
      let theirs = layer + ".attn"
      for (j, name) in ["r", "w", "k", "v", "a", "g"].enumerated() {
        map.add(
          "\(theirs).x_\(name)", "\(ours).time_mix_lerp_fused.weight", .rows([j]),
          shape: [1, 1, width])
      }
      for name in ["w", "a", "v", "g"] {
        map.add("\(theirs).\(name)_lora.lora.0.weight", "\(ours).time_mix_\(name)1.weight")
        map.add("\(theirs).\(name)_lora.lora.2.weight", "\(ours).time_mix_\(name)2.weight")
        if name != "g" {
          map.add("\(theirs).\(name)_lora.lora.2.bias", "\(ours).time_mix_\(name)0.weight")
        }
      }
      if i == 0 {
        // The first layer has no residual value; files repeat other tensors in its place.
        for place in 0...2 {
          let name = "\(ours).time_mix_v\(place).weight"
          map.ignore(name)
        }
        map.removeLowRank("\(theirs).v_lora")
      }
      for name in ["k_k", "k_a", "r_k"] {
        map.add("\(theirs).\(name)", "\(ours).time_mix_\(name).weight")
      }
      for (a, b) in [("r", "receptance"), ("k", "key"), ("v", "value"), ("o", "output")] {
        map.add("\(theirs).\(a)_proj.weight", "\(ours).time_mix_\(b).weight")
      }
      for kind in ["weight", "bias"] {
        map.add("\(theirs).g_norm.\(kind)", "\(ours).time_mix_ln.\(kind)")
        map.add("\(layer).attn_norm.\(kind)", "\(ours).attn_norm.\(kind)")
        map.add("\(layer).ffn_norm.\(kind)", "\(ours).attn_norm_2.\(kind)")
      }
      map.add("\(layer).ffn.x_k", "\(ours).channel_mix_lerp_k.weight", shape: [width])
      map.add("\(layer).ffn.key.weight", "\(ours).channel_mix_key.weight")
      map.add("\(layer).ffn.value.weight", "\(ours).channel_mix_value.weight")
    }
    return [
      "model_type": .string("rwkv7"), "vocab_size": .integer(try m.rows("token_embd.weight")),
      "hidden_size": .integer(width), "num_hidden_layers": .integer(layers),
      "head_dim": .integer(try m.int("wkv.head_size")),
      "intermediate_size": .integer(try m.int("feed_forward_length")),
      "decay_low_rank_dim": .integer(try m.int("attention.decay_lora_rank")),
      "a_low_rank_dim": .integer(try m.int("attention.iclr_lora_rank")),
      "v_low_rank_dim": .integer(try m.int("attention.value_residual_mix_lora_rank")),
      "gate_low_rank_dim": .integer(try m.int("attention.gate_lora_rank")),
      "norm_eps": .number(try m.double("attention.layer_norm_epsilon")),
      "norm_first": .bool(true), "norm_bias": .bool(true), "hidden_act": .string("sqrelu"),
      "tie_word_embeddings": .bool(!m.has("output.weight")), "fuse_norm": .bool(false),
    ]
  }
}
