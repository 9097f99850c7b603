import GyreTensors

/// The sizes of EGG, the recurrent language model whose weights, activations and training are whole
/// numbers of 8 bits (Sarkar et al., "Evolution strategies at the hyperscale",
/// https://arxiv.org/abs/2511.16652), and where its parameters lie in one `[parameterCount]` tensor.
///
/// 16 is one. With ⊕ for sums clipped to ±127 and x @ W = clip(⌊W x / (16⌊√inputs⌋)⌋):
///
///     norm(w, u) = clip(⌊u w / m⌋), m = ⌊Σ|u| / D⌋
///     f = ⊕(u@Wf, s@Uf, bf)    p = (f + 127) s >> 8    h = ⊕(u@Wh, p@Uh, bh)
///     s ← s + ((f + 127)(h − s) >> 8)
///     layer: x ← ⊕(x, s) with u = norm(ln1, x);  x ← ⊕(x, (norm(ln2, x) @ up) @ down)
///     logits = norm(ln_out, x) @ head
///
/// Byte 0 begins a document: it zeroes the state before it is read. Where m is 0 the norm gives −2, and
/// −1 for a product of 0, as the published code does.
public struct EggShape: Sendable, Hashable {
  public var width: Int
  public var layers: Int
  public static let vocabulary = 256

  public init(width: Int, layers: Int) {
    self.width = width
    self.layers = layers
  }

  /// One parameter.
  public struct Leaf: Sendable, Hashable {
    public var name: String
    /// `[outputs, inputs]` or `[D]`.
    public var shape: Shape
    /// First weight and first noise number of a pair.
    public var weight: Int
    public var noise: Int
    public var isMatrix: Bool { shape.rank == 2 }
    /// m + n numbers of a matrix, 2 d of a vector.
    public var noiseCount: Int { isMatrix ? shape[0] + shape[1] : 2 * shape[0] }
    public var weights: Range<Int> { weight..<weight + shape.elementCount }
  }

  /// All parameters in the order of the weights; a leaf's number is its place here.
  public var leaves: [Leaf] {
    var leaves: [Leaf] = []
    var (weight, noise) = (0, 0)
    func add(_ name: String, _ shape: Shape) {
      let leaf = Leaf(name: name, shape: shape, weight: weight, noise: noise)
      leaves.append(leaf)
      weight += shape.elementCount
      noise += leaf.noiseCount
    }
    add("emb", [EggShape.vocabulary, width])
    for l in 0..<layers {
      let square: Shape = [width, width]
      add("layers.\(l).ln1", [width])
      add("layers.\(l).att.Wf", square)
      add("layers.\(l).att.Uf", square)
      add("layers.\(l).att.bf", [width])
      add("layers.\(l).att.Wh", square)
      add("layers.\(l).att.Uh", square)
      add("layers.\(l).att.bh", [width])
      add("layers.\(l).ln2", [width])
      add("layers.\(l).mlp.up", [4 * width, width])
      add("layers.\(l).mlp.down", [width, 4 * width])
    }
    add("ln_out", [width])
    add("head", [EggShape.vocabulary, width])
    return leaves
  }

  /// 513 D + layers (4 D + 12 D²).
  public var parameterCount: Int { 513 * width + layers * (4 * width + 12 * width * width) }
  /// Noise numbers of one pair.
  public var noiseCount: Int { leaves.reduce(0) { $0 + $1.noiseCount } }

  func check(_ weights: TensorSpec, _ op: String) {
    precondition(
      weights == TensorSpec([parameterCount], .int8),
      "\(op): weights \(weights) for int8[\(parameterCount)]")
  }
}

/// The perturbation of a population: members 2j and 2j+1 are pair j with signs + and −.
///
/// A matrix of a member is W + s A Bᵀ 2^−σ / 16 and a vector p + (s z₂ₖ z₂ₖ₊₁ >> (4 + σ)), σ being
/// `sigmaShift`.
public struct EggNoise: Sendable, Hashable {
  public enum Source: Sendable, Hashable {
    /// No perturbation: every member is the model.
    case none
    /// An input `[pairs, noiseCount]`: for each leaf B then A, or the 2 d numbers of a vector.
    case stored
    /// Made from the counter: byte i mod 16 of Philox 4x32-10 with key `seed` and counter
    /// (i / 16, `firstPair` + pair, leaf, epoch), looked up in `EggNoise.value`. Number i of B is number
    /// i, that of A 2³¹ + i. Equal on all devices, and never stored.
    case generated(seed: UInt64, epoch: UInt32, firstPair: UInt32)
  }
  public var source: Source
  public var sigmaShift: Int

  public init(_ source: Source, sigmaShift: Int = 4) {
    self.source = source
    self.sigmaShift = sigmaShift
  }
  public static let none = EggNoise(.none)

  /// 16 Φ⁻¹(½ + (i + ½)/256), rounded: standard deviation 15.95.
  public static let magnitudes: [Int8] = [
    0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 4, 4,
    4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 6, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 8, 8,
    8, 8, 8, 8, 9, 9, 9, 9, 9, 10, 10, 10, 10, 10, 10, 11, 11, 11, 11, 11, 12, 12, 12, 12,
    13, 13, 13, 13, 13, 14, 14, 14, 14, 15, 15, 15, 15, 16, 16, 16, 16, 17, 17, 17, 17, 18, 18, 18,
    19, 19, 19, 20, 20, 20, 21, 21, 21, 22, 22, 22, 23, 23, 24, 24, 25, 25, 26, 27, 27, 28, 29, 29,
    30, 31, 32, 34, 35, 37, 40, 46,
  ]

  /// The number of a random byte: the magnitudes, then their negatives.
  public static func value(_ byte: UInt8) -> Int {
    let magnitude = Int(magnitudes[Int(byte & 127)])
    return byte < 128 ? magnitude : -magnitude
  }

  /// Numbers `first`, `first` + 1, … of a leaf and a pair (counted over the whole population).
  static func generated(
    seed: UInt64, epoch: UInt32, pair: UInt32, leaf: Int, first: UInt32, count: Int
  ) -> [Int] {
    let generator = CounterGenerator(seed: seed, stream: UInt64(epoch) << 32 | UInt64(leaf))
    var numbers: [Int] = []
    numbers.reserveCapacity(count + 15)
    var block = first / 16
    while numbers.count < count {
      let words = generator.words(UInt64(pair) << 32 | UInt64(block))
      for w in 0..<4 {
        for b in 0..<4 { numbers.append(value(UInt8(truncatingIfNeeded: words[w] >> (8 * b)))) }
      }
      block += 1
    }
    return Array(numbers.prefix(count))
  }
}
