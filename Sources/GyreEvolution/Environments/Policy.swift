import GyreLayers
import GyreMixers
import GyreRecurrence
import GyreTensors

/// A small network that acts: h = tanh(W o + b), then a residual layer, then a linear head.
///
/// The layer is any mixer of the catalogue, which remembers, or a second tanh layer, which does not.
public struct Policy: Sendable {
  /// The layer without memory; other kinds are names of mixers.
  public static let feedForward = "feed_forward"
  public let kind: String
  public let parameters: [Parameter]
  private let encoder: Linear
  private let hidden: Linear?
  private let mixer: (any SequenceMixer)?
  private let norm: NormLayer?
  private let head: Linear

  /// - Parameters:
  ///   - outputs: choices, or 1 for a number.
  ///   - memory: steps that some units of a GRU keep what they hold from the start; 0: as usual.
  /// - Throws: for a kind that does not exist or does not fit the width.
  public init(
    _ kind: String, observations: Int, outputs: Int, width: Int, memory: Int = 0,
    source: any ParameterSource, device: any Device
  ) throws(ConfigurationError) {
    self.kind = kind
    var p = ParameterBuilder(source: source, device: device)
    encoder = try Linear("encoder", inputs: observations, outputs: width, bias: .zeros, &p)
    if kind == Policy.feedForward {
      hidden = try Linear("hidden", inputs: width, outputs: width, bias: .zeros, &p)
      (mixer, norm) = (nil, nil)
    } else {
      guard let type = MixerCatalog.mixers.first(where: { $0.kind == kind }) else {
        let known = [Policy.feedForward] + MixerCatalog.mixers.map { $0.kind }
        throw ConfigurationError("policy", "is '\(kind)'; there are \(known)")
      }
      hidden = nil
      norm = try NormLayer("norm", width, &p)
      mixer = try p.scoped("mixer") { p throws(ConfigurationError) in
        try Policy.make(type, width, memory, &p)
      }
    }
    head = try Linear("head", inputs: width, outputs: outputs, bias: .zeros, &p)
    parameters = p.parameters
  }

  private static func make<M: SequenceMixer>(
    _: M.Type, _ width: Int, _ memory: Int, _ p: inout ParameterBuilder
  ) throws(ConfigurationError) -> any SequenceMixer {
    var options = M.Configuration()
    if memory > 0, var gru = options as? GRU.Configuration {
      gru.memory = memory
      if let remembering = gru as? M.Configuration { options = remembering }
    }
    try options.validate(width: width)
    return try M(
      options, width: width, layer: LayerPosition(index: 0, count: 1), parameters: &p)
  }

  public func makeState(rows: Int) -> State { State(mixer?.stateSpec ?? StateSpec(), batch: rows) }

  /// One step of every row: `[R, 1, observations]` to `[R, 1, outputs]`.
  public func callAsFunction(_ observations: Tensor, _ state: inout State) -> Tensor {
    var h = encoder(observations).tanh()
    if let hidden { h = hidden(h).tanh() }
    if let mixer {
      var context = SequenceContext(form: .recurrent)
      h = h + mixer(norm?(h) ?? h, state: &state, context: &context)
    }
    return head(h)
  }
}
