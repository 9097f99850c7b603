import GyreLayers
import GyreMixers
import GyreTensors

/// Mamba and Mamba-2 as their authors store them (`state-spaces/mamba-…`): `config.json` with
/// `d_model`, `n_layer` and `ssm_cfg`, tensors `backbone.embedding.weight` and so on.
///
/// https://github.com/state-spaces/mamba
public enum OriginalMambaFamily: CheckpointFamily {
  public static let name = "original mamba"

  public static func recognizes(
    _ config: ForeignConfiguration, tensorNames: Set<String>
  ) -> Bool {
    config["model_type"] == nil && config.has("d_model") && config.has("n_layer")
  }

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var model = ModelConfiguration()
    model.width = try c.width("d_model", default: 2560)
    model.layers = try c.layerCount("n_layer", default: 64)
    let multiple = try c.count("pad_vocab_size_multiple", default: 8)
    let vocabulary = try c.vocabulary(default: 50277)
    model.vocabulary = (vocabulary + multiple - 1) / multiple * multiple
    model.norm = try c.bool("rms_norm", default: true) ? .rms : .layer
    model.normEpsilon = try c.double("norm_epsilon", default: 1e-5)
    model.tiesEmbedding = try c.bool("tie_embeddings", default: true)
    try c.require(
      try c.ints("attn_layer_idx", default: []).isEmpty, "attn_layer_idx",
      "must be empty: attention layers of this layout are not supported")
    let hidden = try c.int("d_intermediate", default: 0)

    let s = c.object("ssm_cfg") ?? ForeignConfiguration(.object([:]), path: "ssm_cfg")
    let layer = try s.string("layer", default: "Mamba1")
    try s.require(
      ["Mamba1", "Mamba2"].contains(layer), "layer",
      "must be \"Mamba1\" or \"Mamba2\", is \"\(layer.prefix(40))\"")
    var t = TensorMap()
    t.embedding("backbone.embedding.weight", tied: model.tiesEmbedding)
    let bias = model.norm == .layer
    t.linear("norm", "backbone.norm_f", bias: bias)
    let isFirst = layer == "Mamba1"
    let first = isFirst ? try mamba1(s, width: model.width) : Mamba1.Configuration()
    let second = isFirst ? Mamba2.Configuration() : try mamba2(s, width: model.width)
    if isFirst {
      try model.setMixer(Mamba1.self, first)
    } else {
      try model.setMixer(Mamba2.self, second)
    }
    model.feedForward = nil
    let rounded = (hidden + 127) / 128 * 128
    if hidden > 0 {
      var mlp = GatedMLP.Configuration()
      mlp.hidden = rounded
      try model.setFeedForward(GatedMLP.self, mlp)
    }
    for i in 0..<model.layers {
      let (ours, theirs) = ("layers.\(i)", "backbone.layers.\(i)")
      t.linear("\(ours).mixer_norm", "\(theirs).norm", bias: bias)
      if isFirst {
        MambaLayout.map(&t, "\(ours).mixer", "\(theirs).mixer", first, width: model.width)
      } else {
        Mamba2Family.map(&t, "\(ours).mixer", "\(theirs).mixer", second, width: model.width)
      }
      guard hidden > 0 else { continue }
      t.linear("\(ours).feed_forward_norm", "\(theirs).norm2", bias: bias)
      // Their first half goes up, the second is the gate.
      let name = "\(theirs).mlp.fc1.weight"
      t.pieces(
        "\(ours).feed_forward.up.weight",
        [
          .init(name, .range(rounded..<2 * rounded), of: 2 * rounded),
          .init(name, .range(0..<rounded), of: 2 * rounded),
        ])
      t.linear("\(ours).feed_forward.down", "\(theirs).mlp.fc2")
    }
    return FamilyPlan(model: model, tensors: t)
  }

  private static func mamba1(
    _ s: ForeignConfiguration, width: Int
  ) throws(ConfigurationError) -> Mamba1.Configuration {
    var o = Mamba1.Configuration()
    o.stateSize = try s.count("d_state", default: 16)
    o.inner = try s.expanded("expand", width: width)
    o.rank = try s.stepRank("dt_rank", width: width)
    o.convolution = try s.taps("d_conv")
    o.convolutionBias = try s.bool("conv_bias", default: true)
    o.bias = try s.bool("bias", default: false)
    return o
  }

  private static func mamba2(
    _ s: ForeignConfiguration, width: Int
  ) throws(ConfigurationError) -> Mamba2.Configuration {
    var o = Mamba2.Configuration()
    o.stateSize = try s.count("d_state", default: 128)
    o.expansion = try s.count("expand", default: 2)
    o.headSize = try s.count("headdim", default: 64)
    o.groups = try s.count("ngroups", default: 1)
    o.convolution = try s.taps("d_conv")
    o.convolutionBias = try s.bool("conv_bias", default: true)
    o.bias = try s.bool("bias", default: false)
    o.skipPerChannel = try s.bool("D_has_hdim", default: false)
    o.normsFirst = try s.bool("norm_before_gate", default: false)
    let inner = o.expansion * width
    let isPartial = s.has("d_ssm") ? try s.int("d_ssm") != inner : false
    try s.require(
      !isPartial, "d_ssm",
      "must be expand · d_model \(inner): a partial state space is not supported")
    try s.require(
      try s.bool("rmsnorm", default: true), "rmsnorm",
      "must be true: layers without their norm are not supported")
    let limits = try s.doubles("dt_limit", default: [0, .infinity])
    try s.require(
      limits.count == 2 && limits[0] >= 0 && limits[0].isFinite && limits[0] <= limits[1],
      "dt_limit", "must be two numbers, the first not negative nor above the second")
    o.stepLow = limits[0]
    o.stepHigh = limits[1].isFinite ? limits[1] : nil
    return o
  }
}
