import GyreLayers
import GyreMixers

/// flash-linear-attention `mamba`; see `Mamba1`. The tensors are named as in transformers' layout,
/// the fields of `config.json` are not.
public enum FlaMambaFamily: CheckpointFamily {
  public static let name = "flash-linear-attention mamba"

  public static func recognizes(
    _ config: ForeignConfiguration, tensorNames: Set<String>
  ) -> Bool { config["model_type"]?.text == "mamba" && config.looksLikeFla }

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var stack = try FlaMambaStack(c)
    let width = stack.model.width
    var o = Mamba1.Configuration()
    o.stateSize = try c.count("state_size", default: 16)
    o.inner =
      c.has("intermediate_size")
      ? try c.count("intermediate_size") : try c.expanded("expand", width: width)
    o.rank = try c.stepRank("dt_rank", width: width)
    o.convolution = try c.taps("conv_kernel")
    o.convolutionBias = try c.bool("use_conv_bias", default: true)
    o.activation = try c.flaActivation("hidden_act", default: "silu")
    // Only the library's own path takes other functions than silu, and there they gate as well.
    o.gateActivation = o.activation
    o.bias = try c.bool("use_bias", default: false)
    try stack.model.setMixer(Mamba1.self, o)
    return FamilyPlan(mambaBackbone: stack.model) { t, ours, theirs in
      MambaLayout.map(&t, ours, theirs, o, width: width)
    }
  }
}

/// flash-linear-attention `mamba2`; see `Mamba2`.
public enum FlaMamba2Family: CheckpointFamily {
  public static let name = "flash-linear-attention mamba2"

  public static func recognizes(
    _ config: ForeignConfiguration, tensorNames: Set<String>
  ) -> Bool { config["model_type"]?.text == "mamba2" && config.looksLikeFla }

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var stack = try FlaMambaStack(c)
    let width = stack.model.width
    var o = Mamba2.Configuration()
    o.expansion = try c.count("expand", default: 2)
    o.headSize = try c.count("head_dim", default: 64)
    let inner = o.expansion * width
    try c.require(
      inner % o.headSize == 0, "head_dim",
      "must divide expand · hidden_size \(inner), is \(o.headSize)")
    let heads = inner / o.headSize
    if c.has("num_heads") {
      let given = try c.int("num_heads")
      try c.require(
        given == 0 || given == heads, "num_heads",
        "times head_dim \(o.headSize) must be expand · hidden_size \(inner), is \(given)")
    }
    o.stateSize = try c.count("state_size", default: 128)
    o.groups = try c.count("n_groups", default: 1)
    try c.require(
      heads % o.groups == 0, "n_groups", "must divide \(heads) heads, is \(o.groups)")
    o.convolution = try c.taps("conv_kernel")
    o.convolutionBias = try c.bool("use_conv_bias", default: true)
    o.activation = try c.flaActivation("hidden_act", default: "silu")
    o.bias = try c.bool("use_bias", default: false)
    o.normalizes = try c.bool("rmsnorm", default: true)
    if !o.normalizes { o.gateActivation = o.activation }
    o.normEpsilon = stack.model.normEpsilon
    o.normsFirst = try c.bool("norm_before_gate", default: false)
    o.skipPerChannel = try c.bool("D_has_hdim", default: false)
    let limits = try c.doubles("dt_limit", default: [0, .infinity])
    try c.require(
      limits.count == 2 && limits[0] >= 0 && limits[0].isFinite && limits[0] <= limits[1],
      "dt_limit", "must be two numbers, the first not negative nor above the second")
    o.stepLow = limits[0]
    o.stepHigh = limits[1].isFinite ? limits[1] : nil
    try stack.model.setMixer(Mamba2.self, o)
    return FamilyPlan(mambaBackbone: stack.model) { t, ours, theirs in
      Mamba2Family.map(&t, ours, theirs, o, width: width)
    }
  }
}

/// The stack around the library's Mamba layers: norms and mixers alone.
private struct FlaMambaStack {
  var model = ModelConfiguration()

  init(_ c: ForeignConfiguration) throws(ConfigurationError) {
    model.vocabulary = try c.vocabulary(default: 32000)
    model.width = try c.width(default: 2048)
    model.layers = try c.layerCount("num_hidden_layers", default: 48)
    model.normEpsilon = try c.double("norm_eps", default: 1e-5)
    model.tiesEmbedding = try c.bool("tie_word_embeddings", default: false)
    model.initialDeviation = try c.double("initializer_range", default: 0.02)
    model.logitPenalty = try c.logitPenalty()
    model.feedForward = nil
  }
}
