import GyreLayers
import GyreMixers
import GyreTensors

/// flash-linear-attention `mesa_net`.
///
/// The library's kernel rounds queries, keys and the products of its solver to float16, which moves
/// logits by some 10⁻³ of their size; here everything is float32. Its steps while decoding start from
/// another point, which is not read: `max_cg_step_training` counts everywhere. `use_short_conv` is
/// not looked at there either. von Oswald et al., "MesaNet", 2025. https://arxiv.org/abs/2506.05233
public enum MesaNetFamily: CheckpointFamily {
  public static let name = "flash-linear-attention mesa_net"
  public static let modelType: String? = "mesa_net"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var layout = try FlaLayout(
      c, attentionFields: FlaAttention.fields.subtracting(["qk_norm"]))
    var o = MesaNet.Configuration()
    o.heads = try c.count("num_heads", default: 16)
    o.headSize = try c.count("head_dim", default: 128)
    o.convolution = try c.int("conv_size", default: 4, in: 1...16)
    o.gatesOutput = try c.bool("use_output_gate", default: false)
    o.ridgeBound = try c.double("lambda_lower_bound", default: 0.25)
    o.steps = try c.count("max_cg_step_training", default: 30)
    o.normEpsilon = layout.model.normEpsilon
    let options = o
    return try layout.plan(MesaNet.self, o) { t, at in
      let channels = options.heads * options.headSize
      for name in ["q", "k", "v"] {
        t.linear("\(at.mixer).\(name)", "\(at.attn).\(name)_proj")
      }
      for name in ["q", "k"] {
        t.same(
          "\(at.mixer).\(name)_convolution.weight", "\(at.attn).\(name)_conv1d.weight",
          shape: [channels, 1, options.convolution])
      }
      t.linear("\(at.mixer).decay", "\(at.attn).a_proj", bias: true)
      t.linear("\(at.mixer).beta", "\(at.attn).b_proj", bias: true)
      t.same("\(at.mixer).ridge", "\(at.attn).lambda_params")
      if options.gatesOutput { t.linear("\(at.mixer).gate", "\(at.attn).g_proj") }
      t.linear("\(at.mixer).norm", "\(at.attn).o_norm")
      t.linear("\(at.mixer).output", "\(at.attn).o_proj")
    }
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    model.flaFields("mesa_net", "MesaNet", MesaNet.self) { o in
      [
        "num_heads": .integer(o.heads), "head_dim": .integer(o.headSize),
        "conv_size": .integer(o.convolution), "use_output_gate": .bool(o.gatesOutput),
        "lambda_lower_bound": .number(o.ridgeBound), "max_cg_step_training": .integer(o.steps),
        "max_cg_step_decoding": .integer(o.steps),
      ]
    }
  }
}
