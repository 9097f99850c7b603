import GyreTensors

/// One token of a whole model, written down for devices that run it as one piece of work: phases, one
/// after the other, over vectors of float32 that live on the device. What a phase reads was written by
/// phases before it or by the token before.
///
/// Layers append their phases (`SequenceMixer.appendToken`); a layer that cannot leaves the model to be
/// run op by op. States are changed in place.
public struct TokenProgram: Sendable {
  /// A vector of each sequence, from an offset on.
  public struct Vector: Sendable, Hashable {
    public var index: Int
    public var offset: Int
    public func advanced(by n: Int) -> Vector { Vector(index: index, offset: offset + n) }
  }
  /// Sequences that go on together.
  public let batch: Int
  /// Widths of the vectors.
  public private(set) var widths: [Int] = []
  public var phases: [Phase] = []
  private var named: [String: Vector] = [:]

  public init(batch: Int) { self.batch = batch }

  /// A new vector.
  public mutating func vector(_ width: Int) -> Vector {
    widths.append(width)
    return Vector(index: widths.count - 1, offset: 0)
  }
  /// A vector that all layers use in turn: equal names and widths are one vector.
  public mutating func scratch(_ name: String, _ width: Int) -> Vector {
    let key = "\(name) \(width)"
    if let present = named[key] { return present }
    let made = vector(width)
    named[key] = made
    return made
  }

  /// Whether `scratch` was asked for the vector before.
  public func hasScratch(_ name: String, _ width: Int) -> Bool { named["\(name) \(width)"] != nil }

  public enum Phase: Sendable {
    case embedding(Embedding)
    case products(Products)
    case matrix(MatrixStep)
    case attention(Attention)
  }

  /// x = norm(factor · E[token]).
  public struct Embedding: Sendable {
    public var table: Tensor
    public var factor: Double
    public var norm: Norm?
    public var output: Vector
    public init(table: Tensor, factor: Double, norm: Norm?, output: Vector) {
      self.table = table
      self.factor = factor
      self.norm = norm
      self.output = output
    }
  }

  /// RMSNorm or LayerNorm over groups of channels, with what may come before and after it:
  ///
  ///     y = (norm(x [∘ act(z)]) ∘ w + b [+ v ∘ score of the group]) [∘ act(z)]
  public struct Norm: Sendable {
    public enum Place: Sendable { case before, after }
    public var centers = false
    /// Channels of a group; nil: all.
    public var group: Int?
    /// Repeated over the channels where shorter.
    public var weight: Tensor?
    public var bias: Tensor?
    public var epsilon: Double
    public var gate: (vector: Vector, activation: Unary.Kind?, place: Place)?
    public var added: (values: Vector, scores: Vector)?
    public init(
      centers: Bool = false, group: Int? = nil, weight: Tensor? = nil, bias: Tensor? = nil,
      epsilon: Double
    ) {
      self.centers = centers
      self.group = group
      self.weight = weight
      self.bias = bias
      self.epsilon = epsilon
    }
  }

  /// What products multiply.
  public struct Operand: Sendable {
    public var vector: Vector
    public var size: Int
    public var norm: Norm?
    /// The attention whose result is taken in place of the vector.
    public var attention: Attention?
    /// Multiplies, through the activation, what has no norm.
    public var gate: (vector: Vector, activation: Unary.Kind?)?
    public init(
      _ vector: Vector, _ size: Int, norm: Norm? = nil, attention: Attention? = nil,
      gate: (vector: Vector, activation: Unary.Kind?)? = nil
    ) {
      self.vector = vector
      self.size = size
      self.norm = norm
      self.attention = attention
      self.gate = gate
    }
  }

  /// Operand i is x + (last − x) ∘ mixᵢ for the one operand x; `last` becomes x one phase later.
  public struct Shift: Sendable {
    public var mixes: [Tensor]
    public var last: Tensor
    public init(mixes: [Tensor], last: Tensor) {
      self.mixes = mixes
      self.last = last
    }
  }

  public enum Finish: Sendable {
    /// y = f(Wx + b).
    case set(Unary.Kind?)
    /// y = α y + β (Wx + b).
    case add(stream: Double, Double)
    /// y = f(a) ∘ u with a and u the halves of Wx + b.
    case gated(Unary.Kind)
    /// minGRU's step with z and c the halves of Wx + b.
    case minGRU(state: Tensor)
    /// c · tanh(Wx / c).
    case capped(Double)
    var isPaired: Bool {
      switch self {
      case .gated, .minGRU: true
      default: false
      }
    }
  }

  public struct Product: Sendable {
    public var weight: Tensor
    public var bias: Tensor?
    /// Which operand.
    public var operand: Int
    public var output: Vector
    public var finish: Finish
    public init(
      _ weight: Tensor, bias: Tensor? = nil, operand: Int = 0, to output: Vector,
      _ finish: Finish = .set(nil)
    ) {
      self.weight = weight
      self.bias = bias
      self.operand = operand
      self.output = output
      self.finish = finish
    }
    public var isPaired: Bool { finish.isPaired }
    /// Elements of the output.
    public var rows: Int { weight.shape[0] / (isPaired ? 2 : 1) }
    public var columns: Int { weight.shape[1] }
  }

  public struct Products: Sendable {
    public var operands: [Operand]
    public var products: [Product]
    public var shift: Shift?
    /// Windows of convolutions `[B, taps − 1, C]` that take up a vector `[C]`, as nobody reads them now.
    public var windows: [(window: Tensor, from: Vector)] = []
    public init(
      _ operands: [Operand], _ products: [Product], shift: Shift? = nil,
      windows: [(window: Tensor, from: Vector)] = []
    ) {
      self.operands = operands
      self.products = products
      self.shift = shift
      self.windows = windows
    }
  }

  /// One step of a recurrence with a matrix state a head; see `Rule`.
  public struct MatrixStep: Sendable {
    public enum Rule: Sendable {
      /// Mamba-2: streams v (x), k (B) and q (C), step = softplus(gate + bias) in its bounds.
      case mamba2(low: Double, high: Double?)
      /// Gated DeltaNet: q and k of unit length, β = (2)σ(write).
      case delta(write: Vector, isDoubled: Bool)
      /// RWKV-7, whose vectors are in `rwkv7`.
      case rwkv7(RWKV7)
    }
    public struct RWKV7: Sendable {
      public var decay, rate, mixed, first, value, score: Vector
      public var keyScale, keyRate, bonus: Tensor
      /// Whether this layer's values are those that later layers mix with.
      public var isFirst: Bool
      public init(
        decay: Vector, rate: Vector, mixed: Vector, first: Vector, value: Vector, score: Vector,
        keyScale: Tensor, keyRate: Tensor, bonus: Tensor, isFirst: Bool
      ) {
        (self.decay, self.rate, self.mixed, self.first) = (decay, rate, mixed, first)
        (self.value, self.score) = (value, score)
        (self.keyScale, self.keyRate, self.bonus) = (keyScale, keyRate, bonus)
        self.isFirst = isFirst
      }
    }
    public struct Convolution: Sendable {
      public var weight: Tensor
      public var bias: Tensor?
      public var window: Tensor
      public init(weight: Tensor, bias: Tensor?, window: Tensor) {
        self.weight = weight
        self.bias = bias
        self.window = window
      }
    }
    public var rule: Rule
    public var heads, keyHeads, keySize, valueSize: Int
    /// The streams; q, k and v start at these channels of it.
    public var streams: Vector
    public var q, k, v: Int
    public var convolution: Convolution?
    public var activation: Unary.Kind?
    /// Before the softplus of the log decay.
    public var gate: Vector?
    public var logRate, stepBias, skip: Tensor?
    public var scale: Double
    /// ε of unit length.
    public var epsilon: Double
    public var state: Tensor
    public var output: Vector
    public init(
      _ rule: Rule, heads: Int, keyHeads: Int, keySize: Int, valueSize: Int, streams: Vector,
      q: Int, k: Int, v: Int, scale: Double, epsilon: Double, state: Tensor, output: Vector
    ) {
      self.rule = rule
      (self.heads, self.keyHeads) = (heads, keyHeads)
      (self.keySize, self.valueSize) = (keySize, valueSize)
      self.streams = streams
      (self.q, self.k, self.v) = (q, k, v)
      (self.scale, self.epsilon) = (scale, epsilon)
      (self.state, self.output) = (state, output)
    }
  }

  /// Softmax attention over the tokens so far. Its result is no vector of the program: an operand takes it.
  public struct Attention: Sendable {
    public var heads, keyHeads, size: Int
    public var window: Int?
    public var scale: Double
    /// Channels that turn with the position, 0 for none.
    public var rotated: Int
    public var rotaryBase: Double
    public var interleaved: Bool
    public var queryNorm, keyNorm: Tensor?
    public var epsilon: Double
    /// Queries, keys, values.
    public var streams: Vector
    public var q, k, v: Int
    /// Keys and values so far `[B, P, keyHeads, size]`; nil before the first token.
    public var keys, values: Tensor?
    /// Which attention of the program this is: caches and parts belong to it.
    public var index: Int
    public init(
      heads: Int, keyHeads: Int, size: Int, window: Int?, scale: Double, rotated: Int,
      rotaryBase: Double, interleaved: Bool, streams: Vector, q: Int, k: Int, v: Int, index: Int
    ) {
      (self.heads, self.keyHeads, self.size, self.window) = (heads, keyHeads, size, window)
      (self.scale, self.rotated, self.rotaryBase) = (scale, rotated, rotaryBase)
      self.interleaved = interleaved
      (self.streams, self.q, self.k, self.v, self.index) = (streams, q, k, v, index)
      epsilon = 0
    }
  }

  public var attentionCount: Int {
    phases.count { if case .attention = $0 { true } else { false } }
  }
}

/// How the device draws tokens from the logits; the meaning is `GyreInference.Sampler`'s.
public struct TokenDraw: Sendable, Hashable {
  public var temperature = 0.0
  public var topK = 0
  public var topP = 1.0
  public var minP = 0.0
  public var repetitionPenalty = 1.0
  public var repetitionWindow = 0
  public var seed: UInt64 = 0
  public var stream: UInt64 = 0
  /// The number of the first draw.
  public var firstDraw = 0
  public init() {}
}

/// A device that runs token programs.
public protocol TokenProgramDevice: Device {
  /// Makes a program ready to run.
  ///
  /// - Parameters:
  ///   - program: its last phase writes `logits`, a vector of the vocabulary.
  ///   - position: tokens that the states have seen.
  ///   - precision: what weights are multiplied in.
  ///   - draw: how a runner that draws (`DrawingTokenRunner`) does it.
  /// - Returns: nil where the device's kernels do not cover the program's sizes.
  func makeRunner(
    _ program: TokenProgram, logits: TokenProgram.Vector, vocabulary: Int, position: Int,
    precision: ComputePrecision, draw: TokenDraw
  ) -> (any TokenRunner)?
}

/// A program on its device with the state it goes on from.
public protocol TokenRunner: AnyObject {
  /// Reads one token a sequence; the logits `[B, vocabulary]` after them.
  func logits(after tokens: [Int32]) throws(DeviceError) -> [Float]
  /// Kernels that a step launches.
  var launches: Int { get }
}

/// A runner that draws tokens where the logits are, so that the host need not wait for them.
public protocol DrawingTokenRunner: TokenRunner {
  /// Tells the draws which tokens came before, for the penalty of repetition.
  func observe(_ tokens: [Int32])
  /// Queues a step that reads `tokens`, or the tokens drawn by the step before, and draws the next.
  func queueStep(reading tokens: [Int32]?)
  /// The tokens that the oldest queued step drew, −1 where no logit was finite; waits for that step.
  func drawnTokens() throws(DeviceError) -> [Int32]
  /// Steps queued and not taken with `drawnTokens`.
  var queued: Int { get }
}
