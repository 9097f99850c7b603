import GyreCheckpoints
import GyreLayers
import GyreTensors

/// Qwen3-Next: norm weights are stored as factors (the public layout holds factor − 1), a key head's
/// q, k, v and z lie apart, experts of a layer in one tensor.
enum GGUFQwen3Next: GGUFArchitecture {
  static let names = ["qwen3next"]
  static let families: [any CheckpointFamily.Type] = [Qwen3NextFamily.self]

  private static let factor = GGUFMap.Change.values(read: { $0 - 1 }, write: { $0 + 1 })

  static func configuration(
    _ m: GGUFMetadata
  ) throws(ConfigurationError) -> [String: JSONValue] {
    let (width, heads) = (try m.count("embedding_length"), try m.count("attention.head_count"))
    let size = try m.count("attention.key_length", default: max(width / heads, 1))
    let rotated = try m.count("rope.dimension_count", default: max(size / 4, 1))
    try require(
      rotated <= size, "qwen3next.rope.dimension_count", "must be at most the head size \(size)")
    let (inner, valueHeads) = (try m.count("ssm.inner_size"), try m.count("ssm.time_step_rank"))
    try require(
      inner % valueHeads == 0, "qwen3next.ssm.inner_size",
      "must be a multiple of \(valueHeads) heads, is \(inner)")
    try require(
      m["rope.scaling.type"]?.string ?? "none" == "none", "qwen3next.rope.scaling.type",
      "scaled positions are read from the original folder only")
    let dense = try m.int("feed_forward_length", default: 1)
    return [
      "model_type": .string("qwen3_next"), "vocab_size": .integer(try m.rows("token_embd.weight")),
      "hidden_size": .integer(width), "num_hidden_layers": .integer(try m.layerCount),
      "num_attention_heads": .integer(heads),
      "num_key_value_heads": .integer(try m.int("attention.head_count_kv", default: heads)),
      "head_dim": .integer(size), "intermediate_size": .integer(max(dense, 1)),
      "rms_norm_eps": .number(try m.double("attention.layer_norm_rms_epsilon")),
      "rope_theta": .number(try m.double("rope.freq_base", default: 10_000_000)),
      "partial_rotary_factor": .number(Double(rotated) / Double(size)),
      "max_position_embeddings": .integer(try m.int("context_length", default: 32768)),
      "tie_word_embeddings": .bool(!m.has("output.weight")), "hidden_act": .string("silu"),
      "attention_bias": .bool(false),
      "full_attention_interval": .integer(try m.count("full_attention_interval", default: 4)),
      "linear_conv_kernel_dim": .integer(try m.count("ssm.conv_kernel")),
      "linear_key_head_dim": .integer(try m.count("ssm.state_size")),
      "linear_value_head_dim": .integer(inner / valueHeads),
      "linear_num_key_heads": .integer(try m.count("ssm.group_count")),
      "linear_num_value_heads": .integer(valueHeads),
      "num_experts": .integer(try m.int("expert_count", default: 0)),
      "num_experts_per_tok": .integer(max(try m.int("expert_used_count", default: 1), 1)),
      "moe_intermediate_size": .integer(
        max(try m.int("expert_feed_forward_length", default: 1), 1)),
      "shared_expert_intermediate_size": .integer(
        max(try m.int("expert_shared_feed_forward_length", default: 1), 1)),
      "norm_topk_prob": .bool(true), "decoder_sparse_step": .integer(1),
      "mlp_only_layers": .array([]),
    ]
  }

  static func map(_ c: ForeignConfiguration, _ map: inout GGUFMap) throws(ConfigurationError) {
    let layers = try c.layerCount("num_hidden_layers", default: 48)
    let interval = try c.count("full_attention_interval", default: 4)
    let experts = try c.int("num_experts", default: 512, in: 0...4096)
    let (width, hidden) = (
      try c.width(default: 2048), try c.count("moe_intermediate_size", default: 512)
    )
    map.add("model.embed_tokens.weight", "token_embd.weight")
    map.add("model.norm.weight", "output_norm.weight", .all, factor)
    map.add("lm_head.weight", "output.weight")
    for i in 0..<layers {
      let (theirs, ours) = ("model.layers.\(i)", "blk.\(i)")
      map.add("\(theirs).input_layernorm.weight", "\(ours).attn_norm.weight", .all, factor)
      map.add(
        "\(theirs).post_attention_layernorm.weight", "\(ours).post_attention_norm.weight", .all,
        factor)
      if (i + 1) % interval == 0 {
        for (a, b) in [("q", "q"), ("k", "k"), ("v", "v"), ("o", "output")] {
          map.add("\(theirs).self_attn.\(a)_proj.weight", "\(ours).attn_\(b).weight")
        }
        for a in ["q", "k"] {
          map.add(
            "\(theirs).self_attn.\(a)_norm.weight", "\(ours).attn_\(a)_norm.weight", .all, factor)
        }
      } else {
        try linear(c, &map, theirs + ".linear_attn", ours)
      }
      for part in ["gate", "up", "down"] {
        map.add("\(theirs).mlp.\(part)_proj.weight", "\(ours).ffn_\(part).weight")
        map.add(
          "\(theirs).mlp.shared_expert.\(part)_proj.weight", "\(ours).ffn_\(part)_shexp.weight")
        let (rows, columns) = part == "down" ? (width, hidden) : (hidden, width)
        for e in 0..<experts {
          map.add(
            "\(theirs).mlp.experts.\(e).\(part)_proj.weight", "\(ours).ffn_\(part)_exps.weight",
            .range(e * rows..<(e + 1) * rows), shape: [rows, columns],
            stored: [experts, rows, columns])
        }
      }
      map.add("\(theirs).mlp.gate.weight", "\(ours).ffn_gate_inp.weight")
      map.add(
        "\(theirs).mlp.shared_expert_gate.weight", "\(ours).ffn_gate_inp_shexp.weight",
        shape: [1, width], stored: [width])
    }
  }

  private static func linear(
    _ c: ForeignConfiguration, _ map: inout GGUFMap, _ theirs: String, _ ours: String
  ) throws(ConfigurationError) {
    let (heads, valueHeads) = (
      try c.count("linear_num_key_heads", default: 16),
      try c.count("linear_num_value_heads", default: 32)
    )
    let key = try c.count("linear_key_head_dim", default: 128)
    let values = valueHeads / heads * (try c.count("linear_value_head_dim", default: 128))
    let channels = heads * (2 * key + values)
    try require(
      valueHeads % heads == 0 && channels <= 1 << 24, "linear_num_value_heads",
      "must be a multiple of \(heads) key heads")
    // A key head's q, k and v come from three runs of one tensor, z from another.
    var parts: [GGUFMap.Part] = []
    for head in 0..<heads {
      let (q, k) = (head * key, (heads + head) * key)
      let (v, z) = (2 * heads * key + head * values, head * values)
      parts += [
        .init("\(ours).attn_qkv.weight", .range(q..<q + key)),
        .init("\(ours).attn_qkv.weight", .range(k..<k + key)),
        .init("\(ours).attn_qkv.weight", .range(v..<v + values)),
        .init("\(ours).attn_gate.weight", .range(z..<z + values)),
      ]
    }
    let width = try c.width(default: 2048)
    map.add("\(theirs).in_proj_qkvz.weight", parts)
    map.store("\(ours).attn_qkv.weight", as: [channels, width])
    map.store("\(ours).attn_gate.weight", as: [heads * values, width])
    map.add("\(theirs).in_proj_ba.weight", "\(ours).ssm_ba.weight")
    map.add(
      "\(theirs).conv1d.weight", "\(ours).ssm_conv1d.weight",
      stored: [channels, try c.int("linear_conv_kernel_dim", default: 4)])
    map.add("\(theirs).A_log", "\(ours).ssm_a", .all, GGUFMambaParts.decay)
    map.add("\(theirs).dt_bias", "\(ours).ssm_dt.bias")
    map.add("\(theirs).norm.weight", "\(ours).ssm_norm.weight")
    map.add("\(theirs).out_proj.weight", "\(ours).ssm_out.weight")
  }

  static func metadata(
    _ c: ForeignConfiguration
  ) throws(ConfigurationError) -> [(String, GGUFValue)] {
    let (interval, layers) = (
      try c.count("full_attention_interval", default: 4),
      try c.layerCount("num_hidden_layers", default: 48)
    )
    if c.has("layer_types") {
      let types = try c.layerTypes(
        layers: layers, among: ["linear_attention", "full_attention"])
      try require(
        types.enumerated().allSatisfy {
          ($1 == "full_attention") == (($0 + 1) % interval == 0)
        }, "layer_types", "must have attention at every \(interval)th layer to be written as GGUF")
    }
    try require(
      try !c.bool("attention_bias", default: false), "attention_bias",
      "must be false: GGUF's qwen3next has no biases of attention")
    try require(
      try c.string("hidden_act", default: "silu") == "silu", "hidden_act",
      "must be silu: GGUF's qwen3next knows no other")
    let size = try c.count("head_dim", default: 256)
    let rotary = try RotaryParameters(
      c, headSize: size, defaultFraction: 0.25, lengthDefault: 32768)
    try require(
      rotary.scaling == nil, "rope_scaling", "must be absent to be written as GGUF's qwen3next")
    let rotated = Int(Double(size) * rotary.fraction)
    try require(
      rotated % 2 == 0, "partial_rotary_factor",
      "must turn an even number of channels to be written as GGUF, turns \(rotated)")
    let valueHeads = try c.count("linear_num_value_heads", default: 32)
    let experts = try c.int("num_experts", default: 512)
    return [
      ("block_count", .integer(layers)),
      ("context_length", .integer(try c.int("max_position_embeddings", default: 32768))),
      ("embedding_length", .integer(try c.width(default: 2048))),
      ("feed_forward_length", .integer(try c.count("intermediate_size", default: 5632))),
      ("attention.head_count", .integer(try c.count("num_attention_heads", default: 16))),
      ("attention.head_count_kv", .integer(try c.count("num_key_value_heads", default: 2))),
      ("attention.key_length", .integer(size)), ("attention.value_length", .integer(size)),
      ("attention.layer_norm_rms_epsilon", .float(try c.double("rms_norm_eps", default: 1e-6))),
      ("rope.freq_base", .float(rotary.base)),
      ("rope.dimension_count", .integer(rotated)),
      ("full_attention_interval", .integer(interval)),
      ("ssm.conv_kernel", .integer(try c.int("linear_conv_kernel_dim", default: 4))),
      ("ssm.state_size", .integer(try c.count("linear_key_head_dim", default: 128))),
      ("ssm.group_count", .integer(try c.count("linear_num_key_heads", default: 16))),
      ("ssm.time_step_rank", .integer(valueHeads)),
      (
        "ssm.inner_size",
        .integer(valueHeads * (try c.count("linear_value_head_dim", default: 128)))
      ),
      ("expert_count", .integer(experts)),
      (
        "expert_used_count",
        .integer(min(try c.count("num_experts_per_tok", default: 10), experts))
      ),
      (
        "expert_feed_forward_length",
        .integer(try c.count("moe_intermediate_size", default: 512))
      ),
      (
        "expert_shared_feed_forward_length",
        .integer(try c.count("shared_expert_intermediate_size", default: 512))
      ),
      ("vocab_size", .integer(try c.vocabulary(default: 151_936))),
    ]
  }
}
