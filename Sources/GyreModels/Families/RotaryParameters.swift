import GyreLayers
import GyreMixers
import GyreTensors

/// Rotary positions as transformers writes them: `rope_parameters`, or `rope_theta` with
/// `rope_scaling` in older files.
struct RotaryParameters {
  var base: Double
  /// Part of a head that rotates.
  var fraction: Double
  var scaling: RotaryScaling?

  /// - Parameters:
  ///   - defaultBase: where the file gives none.
  ///   - lengthDefault: of `max_position_embeddings`.
  init(
    _ c: ForeignConfiguration, headSize: Int, defaultBase: Double = 10_000,
    defaultFraction: Double = 1, lengthDefault: Int = 2048
  ) throws(ConfigurationError) {
    let nested = c.object("rope_parameters") ?? c.object("rope_scaling")
    let p = nested ?? ForeignConfiguration(.object([:]), path: "rope_parameters")
    base = try p.double("rope_theta", default: try c.double("rope_theta", default: defaultBase))
    try p.require(base > 0 && base.isFinite, "rope_theta", "must be positive, is \(base)")
    fraction = try p.double(
      "partial_rotary_factor",
      default: try c.double("partial_rotary_factor", default: defaultFraction))
    try p.require(
      fraction > 0 && fraction <= 1, "partial_rotary_factor", "must be in (0, 1], is \(fraction)")
    let lengths = 1...1 << 40
    let length = try c.int("max_position_embeddings", default: lengthDefault, in: lengths)
    let type = try p.string("rope_type", default: try p.string("type", default: "default"))
    let original = try c.int(
      "original_max_position_embeddings",
      default: try p.int("original_max_position_embeddings", default: length, in: lengths),
      in: lengths)
    let ratio = Double(length) / Double(original)
    switch type {
    case "default", "mrope": scaling = nil
    case "linear":
      scaling = RotaryScaling(kind: .linear, factor: try p.double("factor"), length: Double(length))
    case "dynamic":
      scaling = RotaryScaling(
        kind: .dynamic, factor: try p.double("factor"), length: Double(length))
    case "yarn":
      let factor = try p.double("factor", default: ratio)
      var magnitude = p.has("attention_factor") ? try p.double("attention_factor") : nil
      if magnitude == nil, p.has("mscale"), p.has("mscale_all_dim") {
        let (one, all) = (try p.double("mscale"), try p.double("mscale_all_dim"))
        func scale(_ m: Double) -> Double {
          factor <= 1 ? 1 : 0.1 * m * Functions.log(factor) + 1
        }
        if one != 0, all != 0 { magnitude = scale(one) / scale(all) }
      }
      let (fast, slow) = (
        try p.double("beta_fast", default: 32), try p.double("beta_slow", default: 1)
      )
      scaling = RotaryScaling(
        kind: .yarn, factor: factor, length: Double(original), magnitude: magnitude,
        fastTurns: fast == 0 ? 32 : fast, slowTurns: slow == 0 ? 1 : slow,
        roundsRamp: try p.bool("truncate", default: true))
    case "llama3":
      scaling = RotaryScaling(
        kind: .llama3, factor: try p.double("factor"), length: Double(original),
        lowFrequency: try p.double("low_freq_factor"),
        highFrequency: try p.double("high_freq_factor"))
    case "longrope":
      scaling = RotaryScaling(
        kind: .longrope, factor: try p.double("factor", default: ratio), length: Double(original),
        magnitude: p.has("attention_factor") ? try p.double("attention_factor") : nil,
        shortFactors: try p.doubles("short_factor"), longFactors: try p.doubles("long_factor"))
    default:
      throw ConfigurationError(
        p.place("rope_type"),
        "must be default, linear, dynamic, yarn, llama3 or longrope, is \"\(type.prefix(40))\"")
    }
    // The library's rates for an odd number of channels are those of another base for one more.
    let given = Int(Double(headSize) * fraction)
    if given > 0, given % 2 == 1 {
      try p.require(
        scaling == nil || scaling?.kind == .linear, "partial_rotary_factor",
        "must rotate an even number of channels with \(type) positions, rotates \(given)")
      base = Functions.pow(base, Double(given + 1) / Double(given))
    }
    guard let scaling else { return }
    do throws(ConfigurationError) {
      try scaling.validate(rotated: channels(headSize))
    } catch { throw error.under(p.path) }
  }

  /// Channels of a head that rotate: an odd number is made even.
  func channels(_ headSize: Int) -> Int {
    let given = Int(Double(headSize) * fraction)
    return given + given % 2
  }

  /// Writes these positions into options of `softmax_attention`.
  func apply(to c: inout AttentionMixer.Configuration, headSize: Int) {
    c.rotaryBase = base
    c.rotaryChannels = channels(headSize)
    c.rotaryScaling = scaling
  }

  /// The fields of a public configuration that say how an attention rotates.
  static func fields(_ c: AttentionMixer.Configuration) -> [String: JSONValue] {
    var p: [String: JSONValue] = [
      "rope_type": .string("default"), "rope_theta": .number(c.rotaryBase),
    ]
    guard let scaling = c.rotaryScaling else { return ["rope_parameters": .object(p)] }
    p["rope_type"] = .string(scaling.kind.rawValue)
    p["factor"] = .number(scaling.factor)
    let length = JSONValue.integer(Int(scaling.length))
    switch scaling.kind {
    case .linear, .dynamic: break
    case .yarn:
      p["original_max_position_embeddings"] = length
      p["beta_fast"] = .number(scaling.fastTurns)
      p["beta_slow"] = .number(scaling.slowTurns)
      p["truncate"] = .bool(scaling.roundsRamp)
      p["attention_factor"] = scaling.magnitude.map(JSONValue.number)
    case .llama3:
      p["original_max_position_embeddings"] = length
      p["low_freq_factor"] = .number(scaling.lowFrequency)
      p["high_freq_factor"] = .number(scaling.highFrequency)
    case .longrope:
      p["original_max_position_embeddings"] = length
      p["short_factor"] = .array(scaling.shortFactors.map(JSONValue.number))
      p["long_factor"] = .array(scaling.longFactors.map(JSONValue.number))
      p["attention_factor"] = scaling.magnitude.map(JSONValue.number)
    }
    return ["rope_parameters": .object(p), "max_position_embeddings": length]
  }
}
