import GyreLayers
import GyreMixers

/// flash-linear-attention `mom`; see `MixtureOfMemories`. The library's loss adds the routers'
/// balance loss, and so does the model's.
public enum FlaMomFamily: CheckpointFamily {
  public static let name = "flash-linear-attention mom"
  public static let modelType: String? = "mom"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var layout = try FlaLayout(c, attentionFields: ["window_size"])
    _ = try c.choice("mom_backend", default: "gated_deltanet", among: ["gated_deltanet"])
    var heads = try c.valueHeads(headSize: 256, heads: 4, expansion: 1)
    heads.heads = heads.keyHeads
    var o = MixtureOfMemories.Configuration()
    o.headSize = heads.size
    o.heads = heads.keyHeads
    o.valueExpansion = heads.valueExpansion
    o.memories = try c.int("num_memories", default: 4, in: 1...4096)
    o.selected = try c.int("topk", default: 2, in: 1...o.memories)
    o.hasSharedMemory = try c.bool("shared_mem", default: true)
    o.sharesProjections = try c.bool("single_kv_proj", default: false)
    o.convolution = try c.shortConvolution(default: true)
    o.gatesOutput = try c.bool("use_output_gate", default: true)
    o.normEpsilon = layout.model.normEpsilon
    layout.model.balanceFactor = try c.double("aux_loss_scale", default: 0.01)
    let (options, sizes) = (o, heads)
    return try layout.plan(MixtureOfMemories.self, o) { t, at in
      t.linear("\(at.mixer).router", "\(at.attn).gate")
      t.linear("\(at.mixer).q", "\(at.attn).q_proj")
      let parts = [
        ("k", sizes.keys), ("v", sizes.values), ("a", sizes.heads), ("b", sizes.heads),
      ]
      t.stacked(
        "\(at.mixer).memory", at.attn,
        parts.flatMap { part, rows in
          let own =
            options.sharesProjections
            ? [] : (0..<options.memories).map { ("\(part)_proj.\($0)", rows) }
          let shares = options.sharesProjections || options.hasSharedMemory
          return own + (shares ? [("shared_\(part)", rows)] : [])
        })
      t.convolutions(
        "\(at.mixer).convolution", at.attn,
        [
          ("q_conv1d", sizes.keys), ("k_conv1d", sizes.keys), ("v_conv1d", sizes.values),
        ], taps: options.convolution)
      t.same("\(at.mixer).A_log", "\(at.attn).A_log")
      t.same("\(at.mixer).dt_bias", "\(at.attn).dt_bias")
      if options.gatesOutput { t.linear("\(at.mixer).gate", "\(at.attn).g_proj") }
      t.linear("\(at.mixer).output", "\(at.attn).o_proj")
      t.same("\(at.mixer).norm.weight", "\(at.attn).o_norm.weight")
    }
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    model.flaFields("mom", "Mom", MixtureOfMemories.self) { o in
      [
        "head_dim": .integer(o.headSize), "num_heads": .integer(o.heads),
        "expand_v": .number(o.valueExpansion), "num_memories": .integer(o.memories),
        "topk": .integer(o.selected), "shared_mem": .bool(o.hasSharedMemory),
        "single_kv_proj": .bool(o.sharesProjections), "use_output_gate": .bool(o.gatesOutput),
        "aux_loss_scale": .number(model.balanceFactor ?? 0),
      ].merging(ForeignConfiguration.shortConvolution(o.convolution)) { a, _ in a }
    }
  }
}
