import GyreLayers
import GyreMixers
import GyreTensors

/// flash-linear-attention `forgetting_transformer`.
///
/// `window_size` does not change the numbers: the library cuts its cache by it, but neither training nor
/// scoring looks at it. Lin et al., "Forgetting Transformer", 2025. https://arxiv.org/abs/2503.02130
public enum ForgettingTransformerFamily: CheckpointFamily {
  public static let name = "flash-linear-attention forgetting_transformer"
  public static let modelType: String? = "forgetting_transformer"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var layout = try FlaLayout(c)
    var o = ForgettingAttention.Configuration()
    o.heads = try c.count("num_heads", default: 32)
    o.keyHeads = try c.groupedHeads(of: o.heads)
    o.bias = try c.bool("qkv_bias", default: false)
    o.normalizesKeys = try c.bool("qk_norm", default: false)
    o.gatesOutput = try c.bool("use_output_gate", default: false)
    if c.has("window_size") { _ = try c.count("window_size") }
    let options = o
    return try layout.plan(ForgettingAttention.self, o) { t, at in
      for name in ["q", "k", "v"] {
        t.linear("\(at.mixer).\(name)", "\(at.attn).\(name)_proj", bias: options.bias)
      }
      t.linear("\(at.mixer).forget", "\(at.attn).f_proj", bias: true)
      t.linear("\(at.mixer).output", "\(at.attn).o_proj")
      if options.gatesOutput { t.linear("\(at.mixer).gate", "\(at.attn).g_proj") }
      if options.normalizesKeys {
        t.linear("\(at.mixer).query_norm", "\(at.attn).q_norm")
        t.linear("\(at.mixer).key_norm", "\(at.attn).k_norm")
      }
    }
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    model.flaFields(
      "forgetting_transformer", "ForgettingTransformer", ForgettingAttention.self
    ) { o in
      [
        "num_heads": .integer(o.heads), "num_kv_heads": .integer(o.keyHeads),
        "qkv_bias": .bool(o.bias), "qk_norm": .bool(o.normalizesKeys),
        "use_output_gate": .bool(o.gatesOutput),
      ]
    }
  }
}
