import GyreCheckpoints
import GyreLayers
import GyreMixers
import GyreTensors

/// llama and models of its shape: rotary pairs lie interleaved in GGUF files, in halves in the
/// public layout.
enum GGUFLlama: GGUFArchitecture {
  static let names = ["llama"]
  static let families: [any CheckpointFamily.Type] = [LlamaFamily.self]

  static func configuration(
    _ m: GGUFMetadata
  ) throws(ConfigurationError) -> [String: JSONValue] {
    let (layers, width) = (try m.layerCount, try m.int("embedding_length"))
    let heads = try m.count("attention.head_count")
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
    var config: [String: JSONValue] = [
      "model_type": .string("llama"), "vocab_size": .integer(try m.rows("token_embd.weight")),
      "hidden_size": .integer(width), "num_hidden_layers": .integer(layers),
      "num_attention_heads": .integer(heads), "num_key_value_heads": .integer(keyHeads),
      "head_dim": .integer(size), "intermediate_size": .integer(try m.int("feed_forward_length")),
      "rms_norm_eps": .number(try m.double("attention.layer_norm_rms_epsilon")),
      "rope_theta": .number(try m.double("rope.freq_base", default: 10000)),
      "tie_word_embeddings": .bool(!m.has("output.weight")), "hidden_act": .string("silu"),
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

  static func map(_ c: ForeignConfiguration, _ map: inout GGUFMap) throws(ConfigurationError) {
    let heads = try c.count("num_attention_heads", default: 32)
    let keyHeads = try c.count("num_key_value_heads", default: heads)
    let size = try headSize(c, heads)
    map.add("model.embed_tokens.weight", "token_embd.weight")
    map.add("model.norm.weight", "output_norm.weight")
    map.add("lm_head.weight", "output.weight")
    for i in 0..<(try c.layerCount("num_hidden_layers", default: 32)) {
      let (theirs, ours) = ("model.layers.\(i)", "blk.\(i)")
      map.add("\(theirs).input_layernorm.weight", "\(ours).attn_norm.weight")
      map.add("\(theirs).post_attention_layernorm.weight", "\(ours).ffn_norm.weight")
      for (a, b, n) in [("q", "attn_q", heads), ("k", "attn_k", keyHeads)] {
        for kind in ["weight", "bias"] {
          map.add(
            "\(theirs).self_attn.\(a)_proj.\(kind)", "\(ours).\(b).\(kind)",
            .order(halves(heads: n, size: size)))
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
  }

  static func metadata(
    _ c: ForeignConfiguration
  ) throws(ConfigurationError) -> [(String, GGUFValue)] {
    let heads = try c.count("num_attention_heads", default: 32)
    let size = try headSize(c, heads)
    let rotary = try RotaryParameters(c, headSize: size)
    var keys: [(String, GGUFValue)] = [
      ("block_count", .integer(try c.layerCount("num_hidden_layers", default: 32))),
      ("context_length", .integer(try c.int("max_position_embeddings", default: 2048))),
      ("embedding_length", .integer(try c.width(default: 4096))),
      ("feed_forward_length", .integer(try c.count("intermediate_size", default: 11008))),
      ("attention.head_count", .integer(heads)),
      ("attention.head_count_kv", .integer(try c.count("num_key_value_heads", default: heads))),
      ("attention.key_length", .integer(size)), ("attention.value_length", .integer(size)),
      ("attention.layer_norm_rms_epsilon", .float(try c.double("rms_norm_eps", default: 1e-6))),
      ("rope.dimension_count", .integer(size)), ("rope.freq_base", .float(rotary.base)),
      ("vocab_size", .integer(try c.vocabulary(default: 32000))),
    ]
    try require(
      try c.string("hidden_act", default: "silu") == "silu", "hidden_act",
      "must be silu: GGUF's llama has no other")
    if let scaling = rotary.scaling {
      try require(
        scaling.kind == .linear, "rope_scaling.rope_type",
        "must be linear or none to be written as GGUF, is \(scaling.kind)")
      keys += [
        ("rope.scaling.type", .string("linear")), ("rope.scaling.factor", .float(scaling.factor)),
      ]
    }
    return keys
  }

  private static func headSize(
    _ c: ForeignConfiguration, _ heads: Int
  ) throws(ConfigurationError) -> Int {
    try c.count("head_dim", default: max(try c.width(default: 4096) / heads, 1))
  }

  /// Row (head, half, i) of the public layout is row (head, i, half) of the file.
  private static func halves(heads: Int, size: Int) -> [Int] {
    (0..<heads).flatMap { head in
      (0..<2).flatMap { half in (0..<size / 2).map { head * size + 2 * $0 + half } }
    }
  }
}
