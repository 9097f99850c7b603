import FoundationEssentials
import GyreLayers
import GyreMixers

/// A model as data: what `config.json` of a run folder holds.
public struct ModelConfiguration: Codable, Hashable, Sendable {
  /// Tokens the model knows.
  public var vocabulary = 256
  /// Width D of the residual stream.
  public var width = 256
  /// Number of layers; each is a mixer and, where there is one, a feed-forward block.
  public var layers = 4
  /// Times that the stack of layers is run over, with the same parameters and a state of each time's
  /// own: 4 layers with 3 loops are 12 deep.
  public var loops = 1
  /// Mixer kinds, repeated over the layers: a hybrid is `["gated_delta_net", "gated_delta_net",
  /// "softmax_attention"]`. An entry `"softmax_attention@window"` has options of its own under that
  /// name.
  public var pattern = ["min_gru"]
  /// Options by entry of a pattern, or by kind for all its entries without options of their own;
  /// what is left out takes its default.
  public var mixers: [String: JSONValue] = [:]
  /// Kind of the feed-forward block; nil for none.
  public var feedForward: String? = "gated_mlp"
  public var feedForwardOptions: JSONValue = .object([:])
  /// Feed-forward entries like those of `pattern`, repeated over the layers, with `"none"` for a
  /// layer without one and options in `mixers`; nil: `feedForward` for all.
  public var feedForwardPattern: [String]?
  /// How a sublayer joins the stream.
  public var residual = Residual.preNorm
  /// Sublayers whose sum is one term of residual attention: 1 or an even number.
  public var residualBlock = 1
  /// Factors (α, β) of the stream and of the sublayer by entry of a pattern or kind; 1 where none
  /// are given.
  public var residualFactors: [String: [Double]] = [:]
  public var norm = NormLayer.Kind.rms
  public var normEpsilon = 1e-6
  /// Whether norms have a bias; nil: LayerNorms have one, RMSNorms have none.
  public var normBias: Bool?
  /// The same and ε of the norm before the head; nil: as the others.
  public var finalNormBias: Bool?
  public var finalNormEpsilon: Double?
  /// Layers after each of which the stream counts half: ε of the norms after it is four times larger;
  /// 0: none. RWKV-4's inference code halves the stream itself, which gives the same.
  public var halvingInterval = 0
  /// A norm directly after the embedding (RWKV).
  public var normalizesEmbedding = false
  /// The output head is the embedding.
  public var tiesEmbedding = false
  /// Standard deviation of embedding and head at the start.
  public var initialDeviation = 0.02
  /// Factor on the embeddings.
  public var embeddingScale = 1.0
  /// c·tanh(logits/c); nil for none.
  public var logitCap: Double?
  /// p: the gradient, not the value, of the loss has p/2 times the mean square of the largest logits;
  /// nil for none. RWKV trains with 1e-4.
  public var logitPenalty: Double?
  /// λ: the loss has λ times the balance loss of the routers, where there are any; nil for none.
  public var balanceFactor: Double?
  /// Rates at which training drops tokens of the vocabulary from the embedding, and channels of the
  /// output for all tokens of a row.
  public var embeddingDropout = 0.0
  public var outputDropout = 0.0
  /// α and β: the gradient of the loss has α times the mean square of the output and β times that of
  /// its change from token to token; nil for none. AWD-LSTM trains with 2 and 1.
  public var activationPenalty: Double?
  public var temporalPenalty: Double?
  /// The text of the public `config.json` that the model was converted from.
  public var origin: String?

  /// How sublayer f with its norm joins the stream x.
  public enum Residual: String, Sendable, Hashable, Codable {
    /// x ← α x + β f(norm(x)).
    case preNorm = "pre_norm"
    /// x ← α n + β f(n) with n = norm(x): the stream itself is normalised (MiniMax).
    case postNorm = "post_norm"
    /// x ← x + f(norm(o)) with o an attention over the sums of blocks of sublayers before f.
    case attention
  }

  public init() {}

  private enum CodingKeys: String, CodingKey, CaseIterable {
    case vocabulary, width, layers, loops, pattern, mixers
    case feedForward = "feed_forward"
    case feedForwardOptions = "feed_forward_options"
    case feedForwardPattern = "feed_forward_pattern"
    case residual
    case residualBlock = "residual_block"
    case residualFactors = "residual_factors"
    case norm
    case normEpsilon = "norm_epsilon"
    case normBias = "norm_bias"
    case finalNormBias = "final_norm_bias"
    case finalNormEpsilon = "final_norm_epsilon"
    case halvingInterval = "halving_interval"
    case normalizesEmbedding = "normalizes_embedding"
    case tiesEmbedding = "ties_embedding"
    case initialDeviation = "initial_deviation"
    case embeddingScale = "embedding_scale"
    case logitCap = "logit_cap"
    case balanceFactor = "balance_factor"
    case logitPenalty = "logit_penalty"
    case embeddingDropout = "embedding_dropout"
    case outputDropout = "output_dropout"
    case activationPenalty = "activation_penalty"
    case temporalPenalty = "temporal_penalty"
    case origin
  }

  public init(from decoder: any Decoder) throws {
    let c = try decoder.container(keyedBy: CodingKeys.self)
    func value<T: Decodable>(_ key: CodingKeys, _ target: inout T) throws {
      if let v = try c.decodeIfPresent(T.self, forKey: key) { target = v }
    }
    try value(.vocabulary, &vocabulary)
    try value(.width, &width)
    try value(.layers, &layers)
    try value(.loops, &loops)
    try value(.pattern, &pattern)
    try value(.mixers, &mixers)
    if c.contains(.feedForward) {
      feedForward = try c.decodeIfPresent(String.self, forKey: .feedForward)
    }
    try value(.feedForwardOptions, &feedForwardOptions)
    feedForwardPattern = try c.decodeIfPresent([String].self, forKey: .feedForwardPattern)
    try value(.residual, &residual)
    try value(.residualBlock, &residualBlock)
    try value(.residualFactors, &residualFactors)
    try value(.norm, &norm)
    try value(.normEpsilon, &normEpsilon)
    normBias = try c.decodeIfPresent(Bool.self, forKey: .normBias)
    finalNormBias = try c.decodeIfPresent(Bool.self, forKey: .finalNormBias)
    finalNormEpsilon = try c.decodeIfPresent(Double.self, forKey: .finalNormEpsilon)
    try value(.halvingInterval, &halvingInterval)
    try value(.normalizesEmbedding, &normalizesEmbedding)
    try value(.tiesEmbedding, &tiesEmbedding)
    try value(.initialDeviation, &initialDeviation)
    try value(.embeddingScale, &embeddingScale)
    logitCap = try c.decodeIfPresent(Double.self, forKey: .logitCap)
    balanceFactor = try c.decodeIfPresent(Double.self, forKey: .balanceFactor)
    logitPenalty = try c.decodeIfPresent(Double.self, forKey: .logitPenalty)
    try value(.embeddingDropout, &embeddingDropout)
    try value(.outputDropout, &outputDropout)
    activationPenalty = try c.decodeIfPresent(Double.self, forKey: .activationPenalty)
    temporalPenalty = try c.decodeIfPresent(Double.self, forKey: .temporalPenalty)
    origin = try c.decodeIfPresent(String.self, forKey: .origin)
  }

  public func encode(to encoder: any Encoder) throws {
    var c = encoder.container(keyedBy: CodingKeys.self)
    try c.encode(vocabulary, forKey: .vocabulary)
    try c.encode(width, forKey: .width)
    try c.encode(layers, forKey: .layers)
    if loops != 1 { try c.encode(loops, forKey: .loops) }
    try c.encode(pattern, forKey: .pattern)
    try c.encode(mixers, forKey: .mixers)
    try c.encode(feedForward, forKey: .feedForward)
    try c.encode(feedForwardOptions, forKey: .feedForwardOptions)
    try c.encodeIfPresent(feedForwardPattern, forKey: .feedForwardPattern)
    if residual != .preNorm { try c.encode(residual, forKey: .residual) }
    if residualBlock != 1 { try c.encode(residualBlock, forKey: .residualBlock) }
    if !residualFactors.isEmpty { try c.encode(residualFactors, forKey: .residualFactors) }
    try c.encode(norm, forKey: .norm)
    try c.encode(normEpsilon, forKey: .normEpsilon)
    try c.encodeIfPresent(normBias, forKey: .normBias)
    try c.encodeIfPresent(finalNormBias, forKey: .finalNormBias)
    try c.encodeIfPresent(finalNormEpsilon, forKey: .finalNormEpsilon)
    if halvingInterval != 0 { try c.encode(halvingInterval, forKey: .halvingInterval) }
    try c.encode(normalizesEmbedding, forKey: .normalizesEmbedding)
    try c.encode(tiesEmbedding, forKey: .tiesEmbedding)
    try c.encode(initialDeviation, forKey: .initialDeviation)
    try c.encode(embeddingScale, forKey: .embeddingScale)
    try c.encode(logitCap, forKey: .logitCap)
    try c.encodeIfPresent(balanceFactor, forKey: .balanceFactor)
    try c.encodeIfPresent(logitPenalty, forKey: .logitPenalty)
    if embeddingDropout != 0 { try c.encode(embeddingDropout, forKey: .embeddingDropout) }
    if outputDropout != 0 { try c.encode(outputDropout, forKey: .outputDropout) }
    try c.encodeIfPresent(activationPenalty, forKey: .activationPenalty)
    try c.encodeIfPresent(temporalPenalty, forKey: .temporalPenalty)
    try c.encodeIfPresent(origin, forKey: .origin)
  }

  /// Reads JSON text.
  ///
  /// - Throws: the path of the first field that is unknown, of the wrong type or impossible.
  public init(json: [UInt8]) throws(ConfigurationError) {
    let value: JSONValue
    do { value = try JSONDecoder().decode(JSONValue.self, from: Data(json)) } catch {
      throw ConfigurationError("", "is not JSON: \(error)")
    }
    try self.init(value)
  }

  public init(_ value: JSONValue) throws(ConfigurationError) {
    guard let members = value.members else { throw ConfigurationError("", "must be an object") }
    let known = Set(CodingKeys.allCases.map(\.rawValue))
    for key in members.keys.sorted() where !known.contains(key) {
      throw ConfigurationError(key, "is not a field; there are \(known.sorted())")
    }
    do { self = try value.decoded(as: ModelConfiguration.self) } catch let error as DecodingError {
      let place = error.place
      throw ConfigurationError(place.path.isEmpty ? "config" : place.path, place.reason)
    } catch { throw ConfigurationError("config", "\(error)") }
    try validate()
  }

  /// The file's text: sorted keys, indented.
  public func json() throws -> String { try ConfigurationFile.text(self) }

  /// - Throws: the first field that cannot be.
  public func validate() throws(ConfigurationError) {
    func bounded(_ value: Int, _ name: String, _ high: Int) throws(ConfigurationError) {
      try require((1...high).contains(value), name, "must be in 1...\(high), is \(value)")
    }
    try bounded(vocabulary, "vocabulary", 1 << 24)
    try bounded(width, "width", 1 << 17)
    try bounded(layers, "layers", 1 << 12)
    try bounded(loops, "loops", 1 << 12)
    try require(
      loops == 1 || residual != .attention, "loops", "must be 1 with residual attention")
    try require(!pattern.isEmpty, "pattern", "must name at least one mixer")
    try require(
      normEpsilon > 0 && normEpsilon < 1, "norm_epsilon", "must be in (0, 1), is \(normEpsilon)")
    try require(
      initialDeviation > 0 && initialDeviation.isFinite, "initial_deviation", "must be positive")
    try require(embeddingScale.isFinite, "embedding_scale", "must be finite")
    try require((balanceFactor ?? 0).isFinite, "balance_factor", "must be finite")
    try require((logitPenalty ?? 0).isFinite, "logit_penalty", "must be finite")
    for (name, rate) in [
      ("embedding_dropout", embeddingDropout), ("output_dropout", outputDropout),
    ] { try require((0...0.999).contains(rate), name, "must be in 0...0.999, is \(rate)") }
    for (name, factor) in [
      ("activation_penalty", activationPenalty), ("temporal_penalty", temporalPenalty),
    ] { try require((0...1e6).contains(factor ?? 0), name, "must be in 0...1e6") }
    try require(
      logitPenalty == nil || logitCap == nil, "logit_penalty", "does not go with logit_cap")
    if let finalNormEpsilon {
      try require(
        finalNormEpsilon > 0 && finalNormEpsilon < 1, "final_norm_epsilon",
        "must be in (0, 1), is \(finalNormEpsilon)")
    }
    try require(
      residualBlock == 1 || residualBlock > 0 && residualBlock % 2 == 0, "residual_block",
      "must be 1 or an even number, is \(residualBlock)")
    try require(
      halvingInterval >= 0, "halving_interval", "must not be negative, is \(halvingInterval)")
    if let logitCap { try require(logitCap > 0, "logit_cap", "must be positive") }
    var checked: Set<String> = []
    for (i, entry) in pattern.enumerated() where checked.insert(entry).inserted {
      try Layers.validate(entry, options(of: entry), width: width, at: "pattern[\(i)]")
    }
    let entries = Set(pattern + (feedForwardPattern ?? []))
    let named = entries.union(entries.map(Layers.kind))
    for entry in mixers.keys.sorted() {
      try require(named.contains(entry), "mixers.\(entry)", "is not in a pattern")
    }
    if let feedForwardPattern {
      try require(!feedForwardPattern.isEmpty, "feed_forward_pattern", "must not be empty")
      for (i, entry) in feedForwardPattern.enumerated()
      where entry != Self.noFeedForward && checked.insert(entry).inserted {
        try Layers.validate(
          entry, options(of: entry), width: width, at: "feed_forward_pattern[\(i)]")
      }
    } else if let feedForward {
      try Layers.validate(
        feedForward, feedForwardOptions, width: width, at: "feed_forward",
        options: "feed_forward_options")
    }
    for (entry, factors) in residualFactors.sorted(by: { $0.key < $1.key }) {
      try require(
        factors.count == 2 && factors.allSatisfy(\.isFinite), "residual_factors.\(entry)",
        "must be two numbers")
    }
  }

  static let noFeedForward = "none"

  /// Options of an entry of a pattern.
  func options(of entry: String) -> JSONValue {
    mixers[entry] ?? mixers[Layers.kind(entry)] ?? .object([:])
  }

  /// The sublayers of a layer: their name, entry and options.
  func sublayers(_ layer: Int) -> [(name: String, entry: String, options: JSONValue)] {
    let mixer = pattern[layer % pattern.count]
    var result = [("mixer", mixer, options(of: mixer))]
    if let feedForwardPattern {
      let entry = feedForwardPattern[layer % feedForwardPattern.count]
      if entry != Self.noFeedForward { result.append(("feed_forward", entry, options(of: entry))) }
    } else if let feedForward {
      result.append(("feed_forward", feedForward, feedForwardOptions))
    }
    return result
  }

  /// Factors of the stream and of a sublayer.
  func factors(of entry: String) -> (stream: Double, sublayer: Double) {
    guard let found = residualFactors[entry] ?? residualFactors[Layers.kind(entry)],
      found.count == 2
    else { return (1, 1) }
    return (found[0], found[1])
  }
}

/// Decoding of mixer options and construction of mixers by kind.
enum Layers {
  /// The mixer kind of an entry: "softmax_attention" of "softmax_attention@window".
  static func kind(_ entry: String) -> String {
    entry.firstIndex(of: "@").map { String(entry[..<$0]) } ?? entry
  }

  static func validate(
    _ entry: String, _ options: JSONValue, width: Int, at path: String, options place: String? = nil
  ) throws(ConfigurationError) {
    let kind = kind(entry)
    guard let type = MixerCatalog.type(of: kind) else {
      let known = (MixerCatalog.mixers + MixerCatalog.feedForwards).map { $0.kind }
      throw ConfigurationError(path, "no mixer is called \(kind); there are \(known)")
    }
    try check(type, options, width, place ?? "mixers.\(entry)")
  }

  private static func check<M: SequenceMixer>(
    _ type: M.Type, _ options: JSONValue, _ width: Int, _ path: String
  ) throws(ConfigurationError) {
    let configuration = try decode(type, options, path)
    do throws(ConfigurationError) { try configuration.validate(width: width) } catch {
      throw error.under(path)
    }
  }

  /// The options over the defaults; unknown fields are errors.
  static func decode<M: SequenceMixer>(
    _: M.Type, _ options: JSONValue, _ path: String
  ) throws(ConfigurationError) -> M.Configuration {
    do {
      let defaults = try JSONValue(encoding: M.Configuration())
      guard var members = defaults.members, let given = options.members else {
        throw ConfigurationError(path, "must be an object")
      }
      for (key, value) in given.sorted(by: { $0.key < $1.key }) {
        if members[key] == nil, !M.Configuration.optionalFields.contains(key) {
          throw ConfigurationError(
            "\(path).\(key)", "is not a field; there are \(members.keys.sorted())")
        }
        if !M.Configuration.largeFields.contains(key) {
          try value.requireModest(at: "\(path).\(key)")
        }
        members[key] = value
      }
      return try JSONValue.object(members).decoded(as: M.Configuration.self)
    } catch let error as ConfigurationError {
      throw error
    } catch let error as DecodingError {
      let place = error.place
      throw ConfigurationError(
        place.path.isEmpty ? path : path + "." + place.path, place.reason)
    } catch { throw ConfigurationError(path, "\(error)") }
  }

  /// Whether an entry's mixer normalises the residual stream itself.
  static func readsStream(_ entry: String) -> Bool {
    MixerCatalog.type(of: kind(entry))?.readsStream ?? false
  }

  static func make(
    _ entry: String, _ options: JSONValue, width: Int, layer: LayerPosition,
    _ p: inout ParameterBuilder
  ) throws(ConfigurationError) -> any SequenceMixer {
    guard let type = MixerCatalog.type(of: kind(entry)) else {
      throw ConfigurationError("pattern", "no mixer is called \(entry)")
    }
    return try make(type, options, width, layer, &p)
  }

  private static func make<M: SequenceMixer>(
    _ type: M.Type, _ options: JSONValue, _ width: Int, _ layer: LayerPosition,
    _ p: inout ParameterBuilder
  ) throws(ConfigurationError) -> any SequenceMixer {
    let configuration = try decode(type, options, "mixers.\(M.kind)")
    return try M(configuration, width: width, layer: layer, parameters: &p)
  }
}
