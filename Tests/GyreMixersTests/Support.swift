import GyreCPU
import GyreLayers
import GyreMixers
import GyreRecurrence
import GyreTensors
import Testing

/// Initial values with noise, remembered by name.
final class RememberedParameters: ParameterSource {
  private(set) var values: [String: [Double]] = [:]
  private let device: any Device
  init(_ device: any Device) { self.device = device }
  func value(name: String, shape: Shape, initializer: Initializer) -> Tensor? {
    let start = initializer.elements(shape, CounterGenerator(seed: 3, name: name))
    let noise = CounterGenerator(seed: 3, name: name + " noise").normals(start.count)
    let mixed = zip(start, noise).map { $0 + 0.1 * $1 }
    values[name] = mixed.map(Double.init)
    return Tensor(mixed, shape: shape, on: device)
  }
}

typealias Vector = [Double]

/// A mixer of width 8 over 11 tokens of one sequence: its parameters, input and output in Double.
struct Sample {
  let p: [String: [Double]]
  let x: [Vector]
  let y: [Vector]
  static let width = 8

  init<M: SequenceMixer>(
    _: M.Type, _ c: M.Configuration, index: Int = 1, tokens: Int = 11
  ) throws {
    let device = try CPUDevice(poisons: true)
    try c.validate(width: Self.width)
    let source = RememberedParameters(device)
    var builder = ParameterBuilder(source: source, device: device)
    let mixer = try M(
      c, width: Self.width, layer: LayerPosition(index: index, count: 3), parameters: &builder)
    let input = CounterGenerator(seed: 7, name: "input").normals(tokens * Self.width)
    var state = State(mixer.stateSpec, batch: 1)
    var context = SequenceContext(form: .chunkwise(size: 4))
    let result = mixer(
      Tensor(input, shape: [1, tokens, Self.width], on: device), state: &state, context: &context)
    p = source.values
    x = rows(input.map(Double.init), Self.width)
    y = rows(try result.doubles(), Self.width)
  }

  /// y is what a formula gives.
  func expect(_ expected: [Vector], _ comment: Comment? = nil) {
    #expect(expected.count == y.count, comment)
    let difference = zip(y.joined(), expected.joined()).reduce(0) {
      $0 + ($1.0 - $1.1) * ($1.0 - $1.1)
    }
    let size = expected.joined().reduce(0) { $0 + $1 * $1 }
    #expect((difference / size).squareRoot() < 1e-5, comment)
  }

  subscript(name: String) -> Vector { p[name] ?? [] }

  /// W x + b of a linear map.
  func linear(_ name: String, _ x: Vector) -> Vector {
    let y = matrix(self[name + ".weight"], x)
    return p[name + ".bias"].map { y + $0 } ?? y
  }
  func lowRank(_ name: String, _ x: Vector) -> Vector {
    linear(name + ".up", linear(name + ".down", x))
  }

  /// A causal depthwise convolution with taps `[channels, width]`, oldest first, then silu.
  func convolution(_ name: String, _ x: [Vector], silu activates: Bool = true) -> [Vector] {
    let (w, channels) = (self[name + ".weight"], x[0].count)
    let taps = w.count / channels
    return x.indices.map { t in
      (0..<channels).map { c in
        var sum = p[name + ".bias"]?[c] ?? 0
        for j in 0..<taps where t - (taps - 1) + j >= 0 {
          sum += w[c * taps + j] * x[t - (taps - 1) + j][c]
        }
        return activates ? silu(sum) : sum
      }
    }
  }

  /// gelu, then a ∘ σ(b).
  func gatedOutput(_ y: Vector) -> Vector {
    let both = linear("output", y.map(gelu))
    return zip(both.prefix(Self.width), both.suffix(Self.width)).map { $0 * sigmoid($1) }
  }
}

func rows(_ flat: Vector, _ width: Int) -> [Vector] {
  stride(from: 0, to: flat.count, by: width).map { Array(flat[$0..<$0 + width]) }
}
func matrix(_ w: Vector, _ x: Vector) -> Vector {
  rows(w, x.count).map { zip($0, x).reduce(0) { $0 + $1.0 * $1.1 } }
}
func + (a: Vector, b: Vector) -> Vector { zip(a, b).map { $0 + $1 } }
/// a + b where the compiler would join arrays.
func added(_ a: Vector, _ b: Vector) -> Vector { zip(a, b).map { $0 + $1 } }
func * (a: Vector, b: Vector) -> Vector { zip(a, b).map { $0 * $1 } }
func dot(_ a: Vector, _ b: Vector) -> Double { zip(a, b).reduce(0) { $0 + $1.0 * $1.1 } }
func split(_ v: Vector, _ sizes: [Int]) -> [Vector] {
  var start = 0
  return sizes.map { n in
    defer { start += n }
    return Array(v[start..<start + n])
  }
}
func sigmoid(_ x: Double) -> Double { Functions.sigmoid(x) }
func silu(_ x: Double) -> Double { x * sigmoid(x) }
func gelu(_ x: Double) -> Double { 0.5 * x * (1 + Functions.erf(x * 0.5.squareRoot())) }
func rms(_ x: Vector, _ epsilon: Double) -> Vector {
  let scale = 1 / (dot(x, x) / Double(x.count) + epsilon).squareRoot()
  return x.map { $0 * scale }
}
func softmax(_ x: Vector) -> Vector {
  let top = x.max() ?? 0
  let e = x.map { Functions.exp($0 - top) }
  let sum = e.reduce(0, +)
  return e.map { $0 / sum }
}

/// Complex numbers for formulas.
struct Complex {
  var re, im: Double
  init(_ re: Double, _ im: Double = 0) { (self.re, self.im) = (re, im) }
  static func exp(_ z: Complex) -> Complex {
    let size = Functions.exp(z.re)
    return Complex(size * Functions.cos(z.im), size * Functions.sin(z.im))
  }
  static func + (a: Complex, b: Complex) -> Complex { Complex(a.re + b.re, a.im + b.im) }
  static func - (a: Complex, b: Complex) -> Complex { Complex(a.re - b.re, a.im - b.im) }
  static func * (a: Complex, b: Complex) -> Complex {
    Complex(a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re)
  }
  static func / (a: Complex, b: Complex) -> Complex {
    let size = b.re * b.re + b.im * b.im
    return Complex((a.re * b.re + a.im * b.im) / size, (a.im * b.re - a.re * b.im) / size)
  }
}
