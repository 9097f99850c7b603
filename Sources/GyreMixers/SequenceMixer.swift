import GyreLayers
import GyreRecurrence
import GyreTensors

/// Which of how many layers a mixer is.
public struct LayerPosition: Sendable, Hashable {
  public var index: Int
  public var count: Int
  public init(index: Int, count: Int) {
    self.index = index
    self.count = count
  }
}

/// What all layers of one forward pass share.
public struct SequenceContext: Sendable {
  public var form: SequenceForm
  /// int32 `[B, T]`, nonzero at the first token of a document; nil where there is one document.
  public var reset: Tensor?
  /// Values that an earlier layer leaves for later ones, such as RWKV-7's first value.
  public var shared: [String: Tensor]
  /// The choices of dropout; nil in evaluation.
  public var dropout: DropoutNoise?
  /// The stream and the resets are `[T, B, ·]`: only where all layers take that.
  public var isTimeMajor = false
  /// The element type in which a layer's last product may write what joins the stream; nil: that of activations.
  package var output: DType?

  public init(
    form: SequenceForm = .chunkwise, reset: Tensor? = nil, dropout: DropoutNoise? = nil
  ) {
    self.form = form
    self.reset = reset
    self.dropout = dropout
    shared = [:]
  }
}

/// Options of a mixer. Every field has a default, and a file may leave any of them out.
public protocol MixerConfiguration: Codable, Hashable, Sendable {
  init()
  /// - Throws: the first field that cannot be, and what it must be.
  func validate(width: Int) throws(ConfigurationError)
  /// Names of fields that are nil by default and so absent from the encoded defaults.
  static var optionalFields: Set<String> { get }
  /// Names of real-valued fields that may hold whole numbers beyond 2²⁰; `validate` bounds them.
  static var largeFields: Set<String> { get }
  /// The same options with the numbers that zeros stand for.
  func resolved(width: Int) -> Self
}

extension MixerConfiguration {
  public static var optionalFields: Set<String> { [] }
  public static var largeFields: Set<String> { [] }
  public func resolved(width: Int) -> Self { self }
}

/// A layer's map over a sequence: a parameterisation around an engine, or a feed-forward block.
///
/// To add one: one file that conforms, one line in `MixerCatalog`, one test. The laws (forms agree,
/// splits agree, packed documents are separate, gradients, state round trips) are checked for every
/// type in the catalogue with its `testConfigurations`.
public protocol SequenceMixer: Sendable {
  associatedtype Configuration: MixerConfiguration
  /// The name in configurations and checkpoints: "gated_delta_net".
  static var kind: String { get }
  /// Small configurations for width 32 that cover the options.
  static var testConfigurations: [Configuration] { get }
  /// Whether the layer takes the residual stream as it is and normalises on its own.
  static var readsStream: Bool { get }
  /// Makes or loads the parameters.
  init(
    _ configuration: Configuration, width: Int, layer: LayerPosition,
    parameters: inout ParameterBuilder
  ) throws(ConfigurationError)
  /// What the layer remembers of a sequence; empty for feed-forward blocks.
  var stateSpec: StateSpec { get }
  /// Whether the layer also takes `[T, B, D]`, as `SequenceContext.isTimeMajor` says, without dropout.
  var takesTimeMajor: Bool { get }
  /// Whether products alone read `x`, which may then be of the element type that they multiply.
  var onlyMultipliesInput: Bool { get }
  /// `[B, T, D]` to `[B, T, D]`; reads and replaces `state`.
  func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext) -> Tensor
  /// Appends one token of the layer to a program; false, with the program as it may be, where the
  /// layer or its options have no such form.
  func appendToken(_ input: TokenInput, to program: inout TokenProgram, state: State) -> Bool
}

/// A layer whose first pass can also make the residual sum and the norm in front of it.
public protocol JoinsNorm: SequenceMixer {
  /// x + part, and the layer's result for its norm; nil where that pass is not one.
  func joined(
    adding part: Tensor, to x: Tensor, norm: NormLayer, state: inout State,
    context: inout SequenceContext
  ) -> (sum: Tensor, y: Tensor)?
}

/// What a layer's part of a token program starts from.
public struct TokenInput: Sendable {
  /// The normalised residual stream.
  public var operand: TokenProgram.Operand
  /// How the layer's last product joins the stream.
  public var finish: TokenProgram.Finish
  public var stream: TokenProgram.Vector { operand.vector }
  public init(operand: TokenProgram.Operand, finish: TokenProgram.Finish) {
    self.operand = operand
    self.finish = finish
  }
  /// The product that ends the layer.
  func output(_ map: Linear) -> TokenProgram.Product {
    TokenProgram.Product(map.weight.value, bias: map.bias?.value, to: stream, finish)
  }
}

extension Linear {
  func token(
    _ operand: Int = 0, to output: TokenProgram.Vector, _ finish: TokenProgram.Finish = .set(nil)
  ) -> TokenProgram.Product {
    TokenProgram.Product(weight.value, bias: bias?.value, operand: operand, to: output, finish)
  }
}

extension SequenceMixer {
  public var kind: String { Self.kind }
  public static var readsStream: Bool { false }
  public var takesTimeMajor: Bool { false }
  public var onlyMultipliesInput: Bool { false }
  public func appendToken(
    _ input: TokenInput, to program: inout TokenProgram, state: State
  ) -> Bool { false }
}
