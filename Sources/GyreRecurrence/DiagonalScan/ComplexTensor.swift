import GyreTensors

/// A tensor of complex numbers as two real ones of one shape.
public struct ComplexTensor: Sendable {
  public var re, im: Tensor
  public init(re: Tensor, im: Tensor) { (self.re, self.im) = (re, im) }

  public var shape: Shape { re.shape }

  /// Broadcasts as the real operators do.
  public static func * (a: ComplexTensor, b: ComplexTensor) -> ComplexTensor {
    ComplexTensor(re: a.re * b.re - a.im * b.im, im: a.re * b.im + a.im * b.re)
  }
  public static func * (a: ComplexTensor, b: Tensor) -> ComplexTensor {
    ComplexTensor(re: a.re * b, im: a.im * b)
  }
  /// a / b = a b̄ / |b|².
  public static func / (a: ComplexTensor, b: ComplexTensor) -> ComplexTensor {
    let size = b.re * b.re + b.im * b.im
    return ComplexTensor(
      re: (a.re * b.re + a.im * b.im) / size, im: (a.im * b.re - a.re * b.im) / size)
  }

  public func map(_ f: (Tensor) -> Tensor) -> ComplexTensor { .init(re: f(re), im: f(im)) }

  /// e^(x + iy).
  public static func exp(_ x: Tensor, _ y: Tensor) -> ComplexTensor {
    let size = x.exp()
    return ComplexTensor(re: size * y.unary(.cosine), im: size * y.unary(.sine))
  }
}

/// How a continuous diagonal system x' = A x + u becomes one in steps of Δ: hₜ = ā hₜ₋₁ + b̄ uₜ.
public enum Discretization: String, Sendable, Hashable, Codable, CaseIterable {
  /// Zero-order hold: ā = e^(ΔA), b̄ = (ā − 1)/A.
  case zoh
  /// Tustin's rule: ā = (1 + ΔA/2)/(1 − ΔA/2), b̄ = Δ/(1 − ΔA/2). LSSL and S4 use it.
  case bilinear

  /// ā and b̄ of A and Δ > 0, which broadcast against each other.
  public func callAsFunction(_ A: ComplexTensor, step: Tensor) -> (
    decay: ComplexTensor, input: ComplexTensor
  ) {
    let z = A * step
    switch self {
    case .zoh:
      let decay = ComplexTensor.exp(z.re, z.im)
      // Re(e^z − 1) = expm1(x) cos y − 2 sin²(y/2): no cancellation for small steps.
      let half = (z.im * 0.5).unary(.sine)
      let less = z.re.unary(.expm1) * z.im.unary(.cosine) - half * half * 2
      return (decay, ComplexTensor(re: less, im: decay.im) / A)
    case .bilinear:
      let up = ComplexTensor(re: z.re * 0.5 + 1, im: z.im * 0.5)
      let down = ComplexTensor(re: z.re * -0.5 + 1, im: z.im * -0.5)
      let one = ComplexTensor(re: z.re * 0 + 1, im: z.im * 0)
      return (up / down, one / down * step)
    }
  }
}
