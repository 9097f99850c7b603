import GyreLayers
import GyreMixers
import GyreTensors

/// What the layouts of flash-linear-attention share: blocks of a norm, `attn`, a norm and a SwiGLU
/// `mlp`, with softmax attention at the layers that the field `attn` lists.
///
/// Yang and Zhang, "FLA: a Triton-based library for hardware-efficient implementations of linear
/// attention mechanism", 2024. https://github.com/fla-org/flash-linear-attention
struct FlaLayout {
  let c: ForeignConfiguration
  var model = ModelConfiguration()
  var tensors = TensorMap()
  /// Layers of softmax attention by index, with their entry in the pattern.
  private var attention: [Int: FlaAttention] = [:]

  /// The library's activation functions; its gelu is the approximation by tanh.
  static let activations: [(theirs: String, ours: String)] = [
    ("swish", "silu"), ("silu", "silu"), ("relu", "relu"), ("sigmoid", "sigmoid"),
    ("logsigmoid", "logSigmoid"), ("sqrelu", "reluSquared"), ("gelu", "geluTanh"),
  ]

  /// The library's name of one of our activation functions; "" where it has none.
  static func activation(named ours: String) -> String {
    activations.first(where: { $0.ours == ours })?.theirs ?? ""
  }

  /// Where a layer's tensors are: our prefix, theirs.
  struct Place {
    var ours: String
    var theirs: String
    /// The layer's mixer.
    var mixer: String { ours + ".mixer" }
    var attn: String { theirs + ".attn" }
  }

  /// - Parameters:
  ///   - layers, ratio: defaults of `num_hidden_layers` and `hidden_ratio`.
  ///   - attentionFields: fields of `attn` that the family passes on to the layer.
  init(
    _ c: ForeignConfiguration, layers: Int = 24, ratio: Double = 4,
    attentionFields: Set<String> = FlaAttention.fields
  ) throws(ConfigurationError) {
    self.c = c
    model.vocabulary = try c.vocabulary(default: 32000)
    model.width = try c.width(default: 2048)
    model.layers = try c.layerCount("num_hidden_layers", default: layers)
    model.normEpsilon = try c.double("norm_eps", default: 1e-6)
    model.tiesEmbedding = try c.bool("tie_word_embeddings", default: false)
    model.initialDeviation = try c.double("initializer_range", default: 0.02)
    model.logitPenalty = try c.logitPenalty()
    var mlp = GatedMLP.Configuration()
    mlp.hidden = try Self.intermediate(c, width: model.width, ratio: ratio)
    mlp.activation = try Self.activation(c)
    mlp.separate = true
    try model.setFeedForward(GatedMLP.self, mlp)
    if c.has("attnres_block_size") {
      model.residual = .attention
      model.residualBlock = try c.count("attnres_block_size")
      try c.require(
        model.residualBlock == 1 || model.residualBlock % 2 == 0, "attnres_block_size",
        "must be 1 or an even number, is \(model.residualBlock)")
    }
    attention = try FlaAttention.read(
      c, layers: model.layers, width: model.width, fields: attentionFields)
  }

  /// `hidden_act`: swish or powlu.
  static func activation(_ c: ForeignConfiguration) throws(ConfigurationError) -> String {
    c["hidden_act"]?.text == GatedMLP.powlu
      ? GatedMLP.powlu : try c.activation("hidden_act", default: "swish", among: ["silu"])
  }

  /// `intermediate_size`, or ⅔ of hidden_size · hidden_ratio rounded up to a multiple of 256.
  private static func intermediate(
    _ c: ForeignConfiguration, width: Int, ratio: Double
  ) throws(ConfigurationError) -> Int {
    if c.has("intermediate_size") { return try c.count("intermediate_size") }
    let ratio = try c.double("hidden_ratio", default: c.isNull("hidden_ratio") ? 4 : ratio)
    let inner = Double(width) * ratio * 2 / 3
    try c.require(
      inner >= 1 && inner <= Double(ForeignConfiguration.largest), "hidden_ratio",
      "must give a hidden width in 1...\(ForeignConfiguration.largest), gives \(inner)")
    return (Int(inner) + 255) / 256 * 256
  }

  /// The model with mixer `M` in every layer without softmax attention, `map` naming its tensors.
  mutating func plan<M: SequenceMixer>(
    _: M.Type, _ options: M.Configuration, map: (inout TensorMap, Place) -> Void
  ) throws(ConfigurationError) -> FamilyPlan {
    tensors.embedding("model.embeddings.weight", tied: model.tiesEmbedding)
    tensors.same("norm.weight", "model.norm.weight")
    if model.residual == .attention { tensors.residualAttention("residual", "model.res") }
    if attention.count < model.layers { try model.setMixer(M.self, options) }
    var pattern: [String] = []
    for i in 0..<model.layers {
      let place = Place(ours: "layers.\(i)", theirs: "model.layers.\(i)")
      tensors.same("\(place.ours).mixer_norm.weight", "\(place.theirs).attn_norm.weight")
      tensors.same("\(place.ours).feed_forward_norm.weight", "\(place.theirs).mlp_norm.weight")
      if model.residual == .attention {
        for (a, b) in [("mixer", "attn"), ("feed_forward", "mlp")] {
          tensors.residualAttention("\(place.ours).\(a)_residual", "\(place.theirs).\(b)_res")
        }
      }
      for part in ["gate", "up", "down"] {
        tensors.linear(
          "\(place.ours).feed_forward.\(part)", "\(place.theirs).mlp.\(part)_proj")
      }
      if let layer = attention[i] {
        pattern.append(layer.entry)
        try model.setMixer(AttentionMixer.self, layer.options, entry: layer.entry)
        layer.map(&tensors, place)
      } else {
        pattern.append(M.kind)
        map(&tensors, place)
      }
    }
    model.pattern = Set(pattern).count == 1 ? [pattern[0]] : pattern
    return FamilyPlan(model: model, tensors: tensors)
  }
}

extension ModelConfiguration {
  /// `config.json` of a model of mixer `M` and gated units in every layer; nil where it is another.
  ///
  /// - Parameter own: the fields of the mixer.
  func flaFields<M: SequenceMixer>(
    _ modelType: String, _ architecture: String, _: M.Type,
    _ own: (M.Configuration) -> [String: JSONValue]
  ) -> JSONValue? {
    guard let options = uniform(M.self), let mlp = uniformFeedForward(GatedMLP.self) else {
      return nil
    }
    var fields: [String: JSONValue] = [
      "architectures": .array([.string(architecture + "ForCausalLM")]),
      "model_type": .string(modelType), "vocab_size": .integer(vocabulary),
      "hidden_size": .integer(width), "num_hidden_layers": .integer(layers),
      "norm_eps": .number(normEpsilon), "tie_word_embeddings": .bool(tiesEmbedding),
      "intermediate_size": .integer(mlp.hidden),
      "hidden_act": .string(mlp.activation == "silu" ? "swish" : mlp.activation),
    ]
    if residual == .attention { fields["attnres_block_size"] = .integer(residualBlock) }
    return .object(fields.merging(own(options)) { _, new in new })
  }
}

/// Softmax attention at some layers of a hybrid: one entry of the field `attn`.
struct FlaAttention {
  static let fields: Set<String> = ["qkv_bias", "rope_theta", "window_size"]
  var entry: String
  var options: AttentionMixer.Configuration

  /// The attention of each layer that `attn`, an object or a list of them, names.
  static func read(
    _ c: ForeignConfiguration, layers: Int, width: Int, fields: Set<String>
  ) throws(ConfigurationError) -> [Int: FlaAttention] {
    guard let given = c["attn"] else { return [:] }
    let specs: [ForeignConfiguration]
    if case .array(let items) = given {
      specs = items.enumerated().map {
        ForeignConfiguration($1, path: c.place("attn[\($0)]"))
      }
    } else {
      specs = [ForeignConfiguration(given, path: c.place("attn"))]
    }
    var result: [Int: FlaAttention] = [:]
    for (i, spec) in specs.enumerated() {
      guard spec.value.members != nil else {
        throw ConfigurationError(spec.path, "must be an object")
      }
      var o = AttentionMixer.Configuration()
      o.heads = try spec.count("num_heads")
      try spec.require(
        width % o.heads == 0, "num_heads", "must divide hidden_size \(width), is \(o.heads)")
      o.keyHeads = try spec.count("num_kv_heads", default: o.heads)
      try spec.require(
        o.heads % o.keyHeads == 0, "num_kv_heads",
        "must divide num_heads \(o.heads), is \(o.keyHeads)")
      if fields.contains("qkv_bias") { o.bias = try spec.bool("qkv_bias", default: false) }
      o.outputBias = false
      if spec.has("window_size") { o.window = try spec.count("window_size") }
      if fields.contains("rope_theta") {
        o.rotaryBase = try spec.double("rope_theta", default: 10_000)
      }
      o.separate = true
      let entry = AttentionMixer.kind + (specs.count > 1 ? "@\(i)" : "")
      for layer in try spec.ints("layers") {
        try spec.require(
          (0..<layers).contains(layer), "layers", "must be in 0..<\(layers), names \(layer)")
        try spec.require(result[layer] == nil, "layers", "names \(layer) twice")
        result[layer] = FlaAttention(entry: entry, options: o)
      }
    }
    return result
  }

  func map(_ t: inout TensorMap, _ place: FlaLayout.Place) {
    for part in ["q", "k", "v"] {
      t.linear("\(place.mixer).\(part)", "\(place.attn).\(part)_proj", bias: options.bias)
    }
    t.linear("\(place.mixer).output", "\(place.attn).o_proj")
    t.ignored("\(place.attn).rotary.inv_freq")
  }
}

// MARK: - What several families read and map alike

extension ForeignConfiguration {
  /// Whether a field is there and null, where that differs from absent.
  func isNull(_ key: String) -> Bool { value.members?[key] == .null }

  /// `use_l2warp`: the library's factor where it is on.
  func logitPenalty(default isOn: Bool = false) throws(ConfigurationError) -> Double? {
    try bool("use_l2warp", default: isOn) ? 1e-4 : nil
  }

  /// A null or false flag is off; an absent one is on.
  func affine(_ key: String = "elementwise_affine") throws(ConfigurationError) -> Bool {
    isNull(key) ? false : try bool(key, default: true)
  }

  /// Taps of the short convolution, 0 where `use_short_conv` is off.
  func shortConvolution(default isOn: Bool) throws(ConfigurationError) -> Int {
    let taps = try int("conv_size", default: 4, in: 1...16)
    return try bool("use_short_conv", default: isOn) ? taps : 0
  }

  /// Our name of one of the library's own activation functions.
  func flaActivation(_ key: String, default fallback: String? = nil) throws(ConfigurationError)
    -> String
  {
    let name = try string(key, default: fallback)
    guard let found = FlaLayout.activations.first(where: { $0.theirs == name }) else {
      throw ConfigurationError(
        place(key),
        "must be one of \(FlaLayout.activations.map(\.theirs)), is \"\(name.prefix(40))\"")
    }
    return found.ours
  }

  /// Fields of a short convolution of some taps.
  static func shortConvolution(_ taps: Int) -> [String: JSONValue] {
    ["use_short_conv": .bool(taps > 0), "conv_size": .integer(taps > 0 ? taps : 4)]
  }

  /// A ratio to `width` that gives each of `heads` a whole number of channels, and that number.
  func expansion(
    _ key: String, default fallback: Double, of width: Int, heads: Int
  ) throws(ConfigurationError) -> (ratio: Double, headSize: Int) {
    let ratio = try double(key, default: fallback)
    let total = ratio * Double(width)
    try require(
      total >= 1 && total <= Double(Self.largest) && abs(total - total.rounded()) < 1e-6 * total
        && Int(total.rounded()) % heads == 0, key,
      "times \(width) must be a whole multiple of \(heads) heads, is \(total)")
    return (ratio, Int(total.rounded()) / heads)
  }

  /// Heads of keys and values; 0 where they are as many as `heads`.
  func groupedHeads(_ key: String = "num_kv_heads", of heads: Int) throws(ConfigurationError)
    -> Int
  {
    guard has(key) else { return 0 }
    let count = try count(key)
    try require(heads % count == 0, key, "must divide \(heads) heads, is \(count)")
    return count
  }
}

extension TensorMap {
  mutating func residualAttention(_ ours: String, _ theirs: String) {
    same("\(ours).query", "\(theirs)_proj.weight")
    same("\(ours).norm.weight", "\(theirs)_norm.weight")
  }

  /// Ours is the weights of several linear maps, one after another.
  mutating func stacked(_ ours: String, _ base: String, _ parts: [(name: String, rows: Int)]) {
    concatenated(
      ours + ".weight", parts.map { "\(base).\($0.name).weight" }, rows: parts.map(\.rows))
  }

  /// Our one short convolution is theirs, one a stream.
  mutating func convolutions(
    _ ours: String, _ base: String, _ parts: [(name: String, rows: Int)], taps: Int
  ) {
    guard taps > 0 else { return }
    stacked(ours, base, parts)
    for part in parts { shape("\(base).\(part.name).weight", [part.rows, 1, taps]) }
  }
}
