/// Some linear maps of as many rows, each with a function behind it: y_i = f_i(x_i W_iᵀ).
///
/// Where rows are few, each weight passes once for little work, and what counts is how many products
/// there are. Inputs: the x_i `[…, K_i]`, then the W_i `[N_i, K_i]`. Outputs `[…, N_i]`, of a gated unit
/// `[…, N_i / 2]`. For inference: it has no derivative.
public struct LinearGroup: Op {
  public enum Function: Int, Sendable, Hashable, Codable {
    case none, tanh, sigmoid, reluSquared
    /// SiLU of the first half of the outputs times the second.
    case gatedSiLU

    package init?(_ kind: Unary.Kind?) {
      switch kind {
      case nil: self = .none
      case .tanh: self = .tanh
      case .sigmoid: self = .sigmoid
      case .reluSquared: self = .reluSquared
      default: return nil
      }
    }
    fileprivate func value(_ x: Double) -> Double {
      switch self {
      case .none: x
      case .tanh: Unary.Kind.tanh.value(x)
      case .sigmoid: Unary.Kind.sigmoid.value(x)
      case .reluSquared: Unary.Kind.reluSquared.value(x)
      case .gatedSiLU: Unary.Kind.silu.value(x)
      }
    }
  }
  /// A map of a group.
  public struct Map {
    public var x, weight: Tensor
    public var function: Function
    public init(_ x: Tensor, _ weight: Tensor, _ function: Function = .none) {
      (self.x, self.weight, self.function) = (x, weight, function)
    }
  }
  public static let name = "linear_group"
  public let functions: [Function]
  /// Element type of the outputs.
  public let output: DType

  /// Rows for which a group is one launch on a device that has a kernel.
  package static let rows = 129...256
  /// Maps of a launch.
  package static let limit = 8

  /// The results; nil where maps are better applied one after the other.
  public static func apply(_ maps: [Map]) -> [Tensor]? {
    guard let first = maps.first?.x, maps.count <= limit, Tape.current == nil,
      Perturbation.current == nil, ComputePrecision.current == .bfloat16,
      rows.contains(first.shape.rowCount)
    else { return nil }
    let op = LinearGroup(
      functions: maps.map(\.function), output: ComputePrecision.activations(on: first.device))
    let suits = maps.allSatisfy { map in
      let (n, k) = (map.weight.shape[0], map.weight.shape[1])
      return map.x.note == nil && map.weight.note == nil && !map.weight.dtype.isQuantized
        && map.x.shape.rowCount == first.shape.rowCount && k % 8 == 0 && n % 8 == 0
        && (map.function != .gatedSiLU || n % 64 == 0)
    }
    guard suits, first.device.fuses(op) else { return nil }
    return GyreTensors.apply(op, maps.map(\.x) + maps.map(\.weight))
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let count = functions.count
    precondition(
      i.count == 2 * count
        && (0..<count).allSatisfy {
          i[count + $0].shape.rank == 2 && i[$0].shape.last == i[count + $0].shape[1]
            && i[$0].shape.rowCount == i[0].shape.rowCount
        }, "linear_group: \(i.map(\.shape))")
    return functions.enumerated().map { p, function in
      var shape = i[p].shape
      shape[-1] = i[count + p].shape[0] / (function == .gatedSiLU ? 2 : 1)
      return TensorSpec(shape, output)
    }
  }

  public func reference(_ a: inout HostArguments) {
    for (p, function) in functions.enumerated() {
      let (x, w) = (a.inputs[p], a.inputs[functions.count + p])
      let (k, n) = (a.inputSpecs[p].shape.last, a.outputSpecs[p].shape.last)
      func product(_ r: Int, _ j: Int) -> Double {
        (0..<k).reduce(0) { $0 + x[r * k + $1] * w[j * k + $1] }
      }
      for r in 0..<a.inputSpecs[p].shape.rowCount {
        for j in 0..<n {
          let y = function.value(product(r, j))
          a.outputs[p][r * n + j] = function == .gatedSiLU ? y * product(r, n + j) : y
        }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }

  public static let cases = [
    group("of many rows", rows: 256, inputs: 72, [(64, .none), (40, .tanh), (96, .sigmoid)]),
    group("gated", rows: 200, inputs: 64, [(128, .gatedSiLU), (8, .none)]),
    group("of long sums", rows: 130, inputs: 1096, [(32, .reluSquared)]),
  ]
  private static func group(
    _ name: String, rows: Int, inputs: Int, _ maps: [(outputs: Int, function: Function)]
  ) -> OpCase {
    OpCase(
      name, LinearGroup(functions: maps.map(\.function), output: .bfloat16),
      maps.map { _ in TestInput([rows, 1, inputs], differentiable: false) }
        + maps.map {
          TestInput(
            [$0.outputs, inputs],
            .normal(scale: 1 / Double(inputs).squareRoot()), differentiable: false)
        }, tolerance: 9e-3, gradientTolerance: 9e-3, differenceTolerance: 1e-2)
  }
}
