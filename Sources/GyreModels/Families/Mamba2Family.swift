import GyreLayers
import GyreMixers
import GyreTensors

/// transformers `mamba2`: a stack of Mamba-2 layers without feed-forward blocks; Codestral Mamba.
///
/// Dao and Gu, "Transformers are SSMs", 2024. https://arxiv.org/abs/2405.21060
///
/// `time_step_limit` bounds Δ in every form; the library forgets it when it decodes token by token.
public enum Mamba2Family: CheckpointFamily {
  public static let name = "transformers mamba2"

  public static func recognizes(
    _ config: ForeignConfiguration, tensorNames: Set<String>
  ) -> Bool { config["model_type"]?.text == "mamba2" && !config.looksLikeFla }

  public static func plan(_ c: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan {
    var model = ModelConfiguration()
    model.vocabulary = try c.vocabulary(default: 32768)
    model.width = try c.width(default: 4096)
    model.layers = try c.layerCount("num_hidden_layers", default: 64)
    model.normEpsilon = try c.double("layer_norm_epsilon", default: 1e-5)
    model.tiesEmbedding = try c.bool("tie_word_embeddings", default: false)
    model.initialDeviation = 0.1
    model.feedForward = nil
    var mixer = Mamba2.Configuration()
    mixer.expansion = try c.count("expand", default: 2)
    mixer.headSize = try c.count("head_dim", default: 64)
    let heads = try c.count("num_heads", default: 128)
    try c.require(
      heads * mixer.headSize == mixer.expansion * model.width, "num_heads",
      "times head_dim \(mixer.headSize) must be expand · hidden_size "
        + "\(mixer.expansion * model.width), is \(heads * mixer.headSize)")
    mixer.stateSize = try c.count("state_size", default: 128)
    mixer.groups = try c.count("n_groups", default: 8)
    mixer.convolution = try c.taps("conv_kernel")
    mixer.convolutionBias = try c.bool("use_conv_bias", default: true)
    mixer.activation = try c.convolutionActivation("hidden_act")
    mixer.bias = try c.bool("use_bias", default: false)
    mixer.normEpsilon = model.normEpsilon
    let limits = try c.doubles("time_step_limit", default: [0, .infinity])
    try c.require(
      limits.count == 2 && limits[0] >= 0 && limits[0].isFinite && limits[0] <= limits[1],
      "time_step_limit", "must be two numbers, the first not negative nor above the second")
    mixer.stepLow = limits[0]
    mixer.stepHigh = limits[1].isFinite ? limits[1] : nil
    try model.setMixer(Mamba2.self, mixer)

    let (options, width) = (mixer, model.width)
    return FamilyPlan(mambaBackbone: model) { t, ours, theirs in
      map(&t, ours, theirs, options, width: width)
    }
  }

  /// The tensors of one Mamba-2 layer.
  static func map(
    _ t: inout TensorMap, _ ours: String, _ theirs: String, _ c: Mamba2.Configuration, width: Int
  ) {
    let channels = c.expansion * width + 2 * c.groups * c.stateSize
    t.linear("\(ours).input", "\(theirs).in_proj", bias: c.bias)
    t.same(
      "\(ours).convolution.weight", "\(theirs).conv1d.weight", shape: [channels, 1, c.convolution])
    if c.convolutionBias { t.same("\(ours).convolution.bias", "\(theirs).conv1d.bias") }
    for name in ["dt_bias", "A_log", "D"] + (c.normalizes ? ["norm.weight"] : []) {
      t.same("\(ours).\(name)", "\(theirs).\(name)")
    }
    t.linear("\(ours).output", "\(theirs).out_proj", bias: c.bias)
  }

  public static func configuration(of model: ModelConfiguration) -> JSONValue? {
    guard let mixer = model.uniform(Mamba2.self) else { return nil }
    return .object([
      "architectures": .array([.string("Mamba2ForCausalLM")]), "model_type": .string("mamba2"),
      "vocab_size": .integer(model.vocabulary), "hidden_size": .integer(model.width),
      "num_hidden_layers": .integer(model.layers),
      "layer_norm_epsilon": .number(model.normEpsilon),
      "tie_word_embeddings": .bool(model.tiesEmbedding), "expand": .integer(mixer.expansion),
      "head_dim": .integer(mixer.headSize),
      "num_heads": .integer(mixer.expansion * model.width / mixer.headSize),
      "state_size": .integer(mixer.stateSize), "n_groups": .integer(mixer.groups),
      "conv_kernel": .integer(mixer.convolution), "use_conv_bias": .bool(mixer.convolutionBias),
      "use_bias": .bool(mixer.bias), "hidden_act": .string(publicActivation(mixer.activation)),
      "time_step_limit": .array([
        .number(mixer.stepLow),
        mixer.stepHigh.map(JSONValue.number) ?? .object(["__float__": .string("Infinity")]),
      ]),
    ])
  }
}
