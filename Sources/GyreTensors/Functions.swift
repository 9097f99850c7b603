#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

// The C library's functions under names that the enum below does not hide.
private func libmExp(_ x: Double) -> Double { exp(x) }
private func libmLog(_ x: Double) -> Double { log(x) }
private func libmTanh(_ x: Double) -> Double { tanh(x) }
private func libmLog1p(_ x: Double) -> Double { log1p(x) }
private func libmExpm1(_ x: Double) -> Double { expm1(x) }
private func libmSin(_ x: Double) -> Double { sin(x) }
private func libmCos(_ x: Double) -> Double { cos(x) }
private func libmErf(_ x: Double) -> Double { erf(x) }
private func libmPow(_ x: Double, _ y: Double) -> Double { pow(x, y) }

/// Scalar functions in Double that references and initialisers are written with.
public enum Functions {
  public static func exp(_ x: Double) -> Double { libmExp(x) }
  public static func log(_ x: Double) -> Double { libmLog(x) }
  public static func tanh(_ x: Double) -> Double { libmTanh(x) }
  public static func log1p(_ x: Double) -> Double { libmLog1p(x) }
  public static func expm1(_ x: Double) -> Double { libmExpm1(x) }
  public static func sin(_ x: Double) -> Double { libmSin(x) }
  public static func cos(_ x: Double) -> Double { libmCos(x) }
  public static func erf(_ x: Double) -> Double { libmErf(x) }
  public static func pow(_ x: Double, _ y: Double) -> Double { libmPow(x, y) }
  public static func sigmoid(_ x: Double) -> Double {
    x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x))
  }
  public static func softplus(_ x: Double) -> Double { max(x, 0) + log1p(exp(-abs(x))) }
  public static func logSigmoid(_ x: Double) -> Double { -softplus(-x) }
}
