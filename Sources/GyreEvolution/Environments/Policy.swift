import GyreLayers
import GyreMixers
import GyreRecurrence
import GyreTensors

/// A small network that acts: h = tanh(W o + b), then residual recurrent layers, then a linear head.
public struct Policy: Sendable {
  public enum Kind: String, Sendable, Codable, CaseIterable {
    case minGRU = "min_gru"
    case gru
    /// A second tanh layer in place of recurrence.
    case feedForward = "feed_forward"
  }
  public let kind: Kind
  public let parameters: [Parameter]
  private let encoder: Linear
  private let hidden: Linear?
  private let mixer: (any SequenceMixer)?
  private let norm: NormLayer?
  private let head: Linear

  /// - Parameter outputs: choices, or 1 for a number.
  public init(
    _ kind: Kind, observations: Int, outputs: Int, width: Int, source: any ParameterSource,
    device: any Device
  ) throws(ConfigurationError) {
    self.kind = kind
    var p = ParameterBuilder(source: source, device: device)
    encoder = try Linear("encoder", inputs: observations, outputs: width, bias: .zeros, &p)
    let layer = LayerPosition(index: 0, count: 1)
    switch kind {
    case .feedForward:
      hidden = try Linear("hidden", inputs: width, outputs: width, bias: .zeros, &p)
      (mixer, norm) = (nil, nil)
    case .minGRU, .gru:
      hidden = nil
      norm = try NormLayer("norm", width, &p)
      mixer = try p.scoped("mixer") { p throws(ConfigurationError) -> any SequenceMixer in
        kind == .gru
          ? try GRU(GRU.Configuration(), width: width, layer: layer, parameters: &p)
          : try MinGRU(MinGRU.Configuration(), width: width, layer: layer, parameters: &p)
      }
    }
    head = try Linear("head", inputs: width, outputs: outputs, bias: .zeros, &p)
    parameters = p.parameters
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
