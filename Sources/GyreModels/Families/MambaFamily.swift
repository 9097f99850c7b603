import GyreLayers
import GyreMixers
import GyreTensors

/// transformers `mamba`: a stack of Mamba-1 layers without feed-forward blocks.
///
/// Gu and Dao, "Mamba", 2023. https://arxiv.org/abs/2312.00752
public enum MambaFamily: CheckpointFamily {
  public static let name = "transformers mamba"

  public static func recognizes(
    _ config: ForeignConfiguration, tensorNames: Set<String>
  ) -> Bool { config["model_type"]?.text == "mamba" && !config.looksLikeFla }

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    try MambaLayout.plan(c, innerNorm: .none, innerNormEpsilon: 1e-6)
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    guard let mixer = model.uniform(Mamba1.self), mixer.innerNorm == .none,
      mixer.inner % model.width == 0
    else { return nil }
    return .object([
      "architectures": .array([.string("MambaForCausalLM")]), "model_type": .string("mamba"),
      "vocab_size": .integer(model.vocabulary), "hidden_size": .integer(model.width),
      "num_hidden_layers": .integer(model.layers),
      "layer_norm_epsilon": .number(model.normEpsilon),
      "tie_word_embeddings": .bool(model.tiesEmbedding),
      "expand": .integer(mixer.inner / model.width), "state_size": .integer(mixer.stateSize),
      "time_step_rank": .integer(mixer.rank), "conv_kernel": .integer(mixer.convolution),
      "use_conv_bias": .bool(mixer.convolutionBias), "use_bias": .bool(mixer.bias),
      "hidden_act": .string(publicActivation(mixer.activation)),
    ])
  }
}

/// transformers `falcon_mamba`: Mamba-1 with weightless RMSNorm of dt, B and C.
///
/// Zuo et al., "Falcon Mamba", 2024. https://arxiv.org/abs/2410.05355
public enum FalconMambaFamily: CheckpointFamily {
  public static let name = "transformers falcon_mamba"
  public static let modelType: String? = "falcon_mamba"

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    try MambaLayout.plan(
      c, innerNorm: .plain, innerNormEpsilon: try c.double("mixer_rms_eps", default: 1e-6))
  }
}

extension ForeignConfiguration {
  /// Whether flash-linear-attention wrote the file: it shares model types with transformers.
  var looksLikeFla: Bool {
    ["fuse_norm", "fuse_cross_entropy", "fuse_swiglu", "norm_eps"].contains(where: has)
  }

  /// `time_step_rank`: a number, or "auto" for a 16th of the width.
  func stepRank(_ key: String, width: Int) throws(ConfigurationError) -> Int {
    if !has(key) || self[key]?.text == "auto" { return (width + 15) / 16 }
    return try count(key)
  }
}

/// What layouts around Mamba-1 layers share.
enum MambaLayout {
  static func plan(
    _ c: ForeignConfiguration, innerNorm: Mamba1.Configuration.InnerNorm, innerNormEpsilon: Double
  ) throws(ConfigurationError) -> FamilyPlan {
    var model = ModelConfiguration()
    model.vocabulary = try c.vocabulary(default: 50280)
    model.width = try c.width(default: 768)
    model.layers = try c.layerCount("num_hidden_layers", default: 32)
    model.normEpsilon = try c.double("layer_norm_epsilon", default: 1e-5)
    model.tiesEmbedding = try c.bool("tie_word_embeddings", default: true)
    model.initialDeviation = 0.1
    model.feedForward = nil
    var mixer = Mamba1.Configuration()
    mixer.stateSize = try c.count("state_size", default: 16)
    mixer.inner = try c.expanded("expand", width: model.width)
    mixer.rank = try c.stepRank("time_step_rank", width: model.width)
    mixer.convolution = try c.taps("conv_kernel")
    mixer.convolutionBias = try c.bool("use_conv_bias", default: true)
    mixer.activation = try c.convolutionActivation("hidden_act")
    mixer.bias = try c.bool("use_bias", default: false)
    mixer.innerNorm = innerNorm
    mixer.innerNormEpsilon = innerNormEpsilon
    try model.setMixer(Mamba1.self, mixer)

    let (options, width) = (mixer, model.width)
    return FamilyPlan(mambaBackbone: model) { t, ours, theirs in
      map(&t, ours, theirs, options, width: width)
    }
  }

  /// The tensors of one Mamba-1 layer.
  static func map(
    _ t: inout TensorMap, _ ours: String, _ theirs: String, _ c: Mamba1.Configuration, width: Int
  ) {
    t.linear("\(ours).input", "\(theirs).in_proj", bias: c.bias)
    t.same(
      "\(ours).convolution.weight", "\(theirs).conv1d.weight", shape: [c.inner, 1, c.convolution])
    if c.convolutionBias { t.same("\(ours).convolution.bias", "\(theirs).conv1d.bias") }
    t.linear("\(ours).select", "\(theirs).x_proj")
    t.linear("\(ours).step", "\(theirs).dt_proj", bias: true)
    t.same("\(ours).A_log", "\(theirs).A_log")
    t.same("\(ours).D", "\(theirs).D")
    t.linear("\(ours).output", "\(theirs).out_proj", bias: c.bias)
  }
}

extension ForeignConfiguration {
  /// The width times a factor, cut to a whole number.
  func expanded(
    _ key: String, width: Int, default fallback: Double = 2
  ) throws(ConfigurationError) -> Int {
    let factor = try double(key, default: fallback)
    let total = factor * Double(width)
    try require(
      total >= 1 && total <= Double(Self.largest), key,
      "times the width must be in 1...\(Self.largest), is \(total)")
    return Int(total)
  }

  /// The width of a convolution.
  func taps(_ key: String, default fallback: Int = 4) throws(ConfigurationError) -> Int {
    try int(key, default: fallback, in: 1...16)
  }

  /// An activation after a convolution: any that is known.
  func convolutionActivation(
    _ key: String, _ fallback: String = "silu"
  ) throws(ConfigurationError) -> String {
    try activation(
      key, default: fallback,
      among: ["silu", "gelu", "geluTanh", "relu", "reluSquared", "sigmoid", "tanh", "softplus"])
  }
}

extension FamilyPlan {
  /// The layout that transformers and flash-linear-attention share for both Mambas: a norm and a mixer a
  /// layer; `map` names the mixer's tensors.
  init(
    mambaBackbone model: ModelConfiguration,
    _ map: (inout TensorMap, _ ours: String, _ theirs: String) -> Void
  ) {
    var t = TensorMap()
    t.embedding("backbone.embeddings.weight", tied: model.tiesEmbedding)
    t.same("norm.weight", "backbone.norm_f.weight")
    for i in 0..<model.layers {
      let (ours, theirs) = ("layers.\(i)", "backbone.layers.\(i)")
      t.same("\(ours).mixer_norm.weight", "\(theirs).norm.weight")
      map(&t, "\(ours).mixer", "\(theirs).mixer")
    }
    self.init(model: model, tensors: t)
  }
}
