import GyreTensors

/// Products large enough for schemes with fewer multiplications than the definition, or for operands in several
/// parts, against Double.
///
/// The definition of such a product takes too long, so elements in drawn rows and columns are compared with
/// it, and all others through C v = A (B v).
enum CheckProduct {
  /// Relative error of a product of standard normals in float32, by any scheme.
  private static let tolerance = 4e-6

  private struct Shape: Sendable {
    var m, n, k: Int
    var left = false, right = false
    var hasBias = false

    var name: String {
      "product \(m) × \(n) × \(k) \(left ? "T" : "N")\(right ? "T" : "N")\(hasBias ? " bias" : "")"
    }
  }

  private static let shapes = [
    Shape(m: 1024, n: 768, k: 1021),
    Shape(m: 771, n: 1021, k: 1000, right: true),
    Shape(m: 1030, n: 1024, k: 1790, left: true),
    Shape(m: 803, n: 1000, k: 1010, left: true, right: true),
    Shape(m: 1001, n: 1536, k: 768, right: true, hasBias: true),
    Shape(m: 515, n: 1024, k: 1045, right: true, hasBias: true),
    Shape(m: 2051, n: 512, k: 1017, left: true),
    Shape(m: 300, n: 270, k: 2113, left: true),
    Shape(m: 330, n: 261, k: 515),
    Shape(m: 300, n: 290, k: 333, right: true),
  ]

  static func cases(setThreadCount: (@Sendable (Int) -> Int)?) -> [ConformanceCase] {
    var cases = shapes.map { shape in
      ConformanceCase(shape.name, [.device]) { check in try compare(&check, shape) }
    }
    cases.append(
      ConformanceCase("product of rows and columns of unlike size", [.device]) { check in
        try unlike(&check)
      })
    cases.append(
      ConformanceCase("product with numbers that are not finite", [.device]) { check in
        try notFinite(&check)
      })
    if let setThreadCount {
      cases.append(
        ConformanceCase("product thread count", [.device]) { check in
          try threadCount(&check, setThreadCount)
        })
    }
    return cases
  }

  /// op(A) [m, k] and op(B) [k, n] as stored.
  private struct Operands {
    let shape: Shape
    var a, b: [Float]

    init(_ shape: Shape, _ check: Check) {
      self.shape = shape
      a = check.normals("a", shape.m * shape.k)
      b = check.normals("b", shape.k * shape.n)
    }

    func aIndex(_ i: Int, _ l: Int) -> Int { shape.left ? l * shape.m + i : i * shape.k + l }
    func bIndex(_ l: Int, _ j: Int) -> Int { shape.right ? j * shape.k + l : l * shape.n + j }

    func product(on device: any Device, bias: [Float]? = nil) -> Tensor {
      let x = Tensor(
        a, shape: shape.left ? [shape.k, shape.m] : [shape.m, shape.k], on: device)
      let y = Tensor(
        b, shape: shape.right ? [shape.n, shape.k] : [shape.k, shape.n], on: device)
      guard let bias else {
        return x.matmul(y, transposingLeft: shape.left, transposingRight: shape.right)
      }
      return x.linear(y, bias: Tensor(bias, shape: [shape.n], on: device))
    }

    /// Element (i, j) and ‖aᵢ‖ ‖bⱼ‖.
    func element(_ i: Int, _ j: Int) -> (value: Double, size: Double) {
      var (sum, left, right) = (0.0, 0.0, 0.0)
      for l in 0..<shape.k {
        let (x, y) = (Double(a[aIndex(i, l)]), Double(b[bIndex(l, j)]))
        sum += x * y
        left += x * x
        right += y * y
      }
      return (sum, (left * right).squareRoot())
    }

    /// A (B v).
    func applied(to v: [Double]) -> [Double] {
      var inner = [Double](repeating: 0, count: shape.k)
      for l in 0..<shape.k {
        for j in 0..<shape.n { inner[l] += Double(b[bIndex(l, j)]) * v[j] }
      }
      return (0..<shape.m).map { i in
        var sum = 0.0
        for l in 0..<shape.k { sum += Double(a[aIndex(i, l)]) * inner[l] }
        return sum
      }
    }

    /// Rows or columns that fall into all parts of blocks of any size.
    static func drawn(_ count: Int) -> [Int] {
      stride(from: 0, to: count, by: 37).map { $0 } + [count - 1]
    }
  }

  private static func compare(_ check: inout Check, _ shape: Shape) throws {
    let operands = Operands(shape, check)
    let bias = shape.hasBias ? check.normals("bias", shape.n) : nil
    let c = try operands.product(on: check.device, bias: bias).doubles()
    var (found, expected) = ([Double](), [Double]())
    for i in Operands.drawn(shape.m) {
      for j in Operands.drawn(shape.n) {
        found.append(c[i * shape.n + j])
        expected.append(operands.element(i, j).value + Double(bias?[j] ?? 0))
      }
    }
    check.compare("drawn elements", found, expected, tolerance)
    let v = check.normals("v", shape.n).map(Double.init)
    let constant = zip(v, bias ?? []).reduce(0) { $0 + $1.0 * Double($1.1) }
    let sums = (0..<shape.m).map { i in
      v.indices.reduce(0.0) { $0 + c[i * shape.n + $1] * v[$1] }
    }
    check.compare(
      "all elements times a vector", sums, operands.applied(to: v).map { $0 + constant }, tolerance)
  }

  /// An element is as exact as its own row and column are large, whatever the others are.
  private static func unlike(_ check: inout Check) throws {
    let shape = Shape(m: 1024, n: 1024, k: 1024)
    var operands = Operands(shape, check)
    func factor(_ place: Int, _ most: Int) -> Float {
      Float(sign: .plus, exponent: place * 7919 % (2 * most) - most, significand: 1)
    }
    for i in 0..<shape.m {
      for l in 0..<shape.k { operands.a[operands.aIndex(i, l)] *= factor(i, 50) }
    }
    for j in 0..<shape.n {
      for l in 0..<shape.k { operands.b[operands.bIndex(l, j)] *= factor(j, 40) }
    }
    let c = try operands.product(on: check.device).doubles()
    var worst = 0.0
    for i in Operands.drawn(shape.m) {
      for j in Operands.drawn(shape.n) {
        let (value, size) = operands.element(i, j)
        worst = max(worst, abs(c[i * shape.n + j] - value) / size)
      }
    }
    check.record("largest error over ‖aᵢ‖ ‖bⱼ‖", worst, tolerance)
  }

  /// What is not finite stays in its row and column.
  private static func notFinite(_ check: inout Check) throws {
    let shape = Shape(m: 1024, n: 1024, k: 1024)
    var operands = Operands(shape, check)
    let plain = try operands.product(on: check.device).doubles()
    operands.a[operands.aIndex(700, 31)] = .nan
    operands.b[operands.bIndex(900, 5)] = .infinity
    let c = try operands.product(on: check.device).doubles()
    var (others, rest) = ([Double](), [Double]())
    for i in 0..<shape.m where i != 700 {
      for j in 0..<shape.n where j != 5 {
        others.append(c[i * shape.n + j])
        rest.append(plain[i * shape.n + j])
      }
    }
    check.compare("other rows and columns", others, rest, tolerance)
    check.require(
      "the row is NaN", (0..<shape.n).allSatisfy { c[700 * shape.n + $0].isNaN })
    check.require(
      "the column is not finite", (0..<shape.m).allSatisfy { !c[$0 * shape.n + 5].isFinite })
  }

  private static func threadCount(
    _ check: inout Check, _ set: @Sendable (Int) -> Int
  ) throws {
    let before = set(1)
    defer { _ = set(before) }
    for shape in [shapes[0], shapes[5]] {
      let operands = Operands(shape, check)
      let bias = shape.hasBias ? check.normals("bias", shape.n) : nil
      _ = set(1)
      let one = try operands.product(on: check.device, bias: bias).doubles()
      for count in [2, 3, 8] {
        _ = set(count)
        check.identical(
          "\(shape.name), \(count) threads as one",
          try operands.product(on: check.device, bias: bias).doubles(), one)
      }
    }
  }
}
