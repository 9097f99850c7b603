import GyreLayers
import GyreTensors

/// A map φ of a head's queries or keys to the features whose products replace softmax(q·k).
///
/// | name | φ(x) | |
/// | --- | --- | --- |
/// | `identity` | x | |
/// | `elu` | elu(x) + 1 | Katharopoulos et al., 2020 |
/// | `relu`, `silu`, … | an element-wise function | |
/// | `elementwise_product` | (W₁x + b₁) ∘ (W₂x + b₂) | |
/// | `t2r` | relu(Wx) | Kasai et al., "Finetuning pretrained Transformers into RNNs", 2021 |
/// | `hedgehog` | softmax([2z, −2z]), z = Wx + b | Zhang et al., "The hedgehog & the porcupine", 2024 |
/// | `dpfp` | with r = [relu(x), relu(−x)]: r ∘ roll(r, j), j = 1…4 | Schlag et al., 2021 |
/// | `taylor` | [1, x/K^¼, xᵢ²/√(2K), xᵢxⱼ/√K for i < j] | Arora et al., "Based", 2024 |
struct FeatureMap: Sendable {
  enum Kind: Sendable, Hashable {
    case identity, elu, product, t2r, hedgehog, dpfp, taylor
    case elementwise(Unary.Kind)

    static let elementwise: [Unary.Kind] = [
      .relu, .reluSquared, .silu, .gelu, .geluTanh, .sigmoid, .tanh, .exp, .softplus, .logSigmoid,
    ]
    private static let others: [(String, Kind)] = [
      ("identity", .identity), ("elu", .elu), ("elementwise_product", .product), ("t2r", .t2r),
      ("hedgehog", .hedgehog), ("dpfp", .dpfp), ("taylor", .taylor),
    ]

    /// - Throws: for a name that is none of the kinds, or one with parameters where
    ///   `withoutParameters`.
    init(
      _ name: String, field: String = "featureMap", withoutParameters: Bool = false
    ) throws(ConfigurationError) {
      let known =
        Self.others + Self.elementwise.map { ($0.name, Kind.elementwise($0)) }
      let usable = known.filter { !withoutParameters || !$0.1.hasParameters }
      guard let found = usable.first(where: { $0.0 == name }) else {
        throw ConfigurationError(field, "must be one of \(usable.map(\.0)), is \(name)")
      }
      self = found.1
    }

    var hasParameters: Bool { [.product, .t2r, .hedgehog].contains(self) }

    /// Features of a head of `size` channels.
    func features(_ size: Int) -> Int {
      switch self {
      case .identity, .elu, .product, .t2r, .elementwise: size
      case .hedgehog: 2 * size
      case .dpfp: 2 * size * Self.rolls
      case .taylor: 1 + size + size * (size + 1) / 2
      }
    }

    /// ν of DPFP.
    static let rolls = 4
  }

  let kind: Kind
  private let first: Linear?
  private let second: Linear?

  /// - Parameter name: scope of the parameters of those kinds that have any.
  init(
    _ kind: Kind, size: Int, _ name: String, _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.kind = kind
    (first, second) = try p.scoped(name) { p throws(ConfigurationError) in
      switch kind {
      case .product:
        return (
          try Linear("layer1", inputs: size, outputs: size, bias: .zeros, &p),
          try Linear("layer2", inputs: size, outputs: size, bias: .zeros, &p)
        )
      case .t2r: return (try Linear("layer", inputs: size, outputs: size, &p), nil)
      case .hedgehog:
        let identity = Initializer.each { $0 / size == $0 % size ? 1 : 0 }
        return (
          try Linear(
            "layer", inputs: size, outputs: size, bias: .zeros, initializer: identity, &p), nil
        )
      default: return (nil, nil)
      }
    }
  }

  /// `[…, K]` to `[…, features]`.
  func callAsFunction(_ x: Tensor) -> Tensor {
    switch kind {
    case .identity: return x
    case .elementwise(let f): return x.unary(f)
    // max(x, 0) + e^min(x, 0): no cancellation for negative x.
    case .elu: return x.relu() + (-(-x).relu()).exp()
    case .product: return (first?(x) ?? x) * (second?(x) ?? x)
    case .t2r: return (first?(x) ?? x).relu()
    case .hedgehog:
      let z = (first?(x) ?? x) * 2
      return concatenated([z, -z]).softmax()
    case .dpfp: return dpfp(x)
    case .taylor: return taylor(x)
    }
  }

  private func dpfp(_ x: Tensor) -> Tensor {
    let r = concatenated([x.relu(), (-x).relu()])
    let n = r.shape.last
    let products = (1...Kind.rolls).map { j in
      let parts = r.split([n - j % n, j % n].filter { $0 > 0 })
      return r * concatenated(parts.reversed())
    }
    return concatenated(products)
  }

  private func taylor(_ x: Tensor) -> Tensor {
    let n = x.shape.last
    let root = Double(n).squareRoot()
    let pairs = (0..<n).flatMap { i in (i + 1..<n).map { (i, $0) } }
    let ones = Tensor.full(1, Shape(x.shape.dimensions.dropLast() + [1]), on: x.device)
    var parts = [ones, x / root.squareRoot(), x * x / (root * 2.0.squareRoot())]
    if !pairs.isEmpty {
      // Products with 0/1 matrices pick the factors of each pair.
      func picked(_ index: ((Int, Int)) -> Int) -> Tensor {
        var rows = [Float](repeating: 0, count: pairs.count * n)
        for (r, pair) in pairs.enumerated() { rows[r * n + index(pair)] = 1 }
        return x.linear(Tensor(rows, shape: [pairs.count, n], on: x.device))
      }
      parts.append(picked(\.0) * picked(\.1) / root)
    }
    return concatenated(parts)
  }
}
