/// A norm times what has as many elements, in one pass: y = norm(x) ∘ z.
///
/// Inputs: x `[…, N]`, z alike; w, perhaps b as in `Norm`. For inference: it has no derivative.
public struct NormedProduct: Op {
  public static let name = "normed_product"
  public let norm: Norm
  public init(_ norm: Norm) { self.norm = norm }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    precondition(
      i.count > 2 && i[0].shape == i[1].shape
        && i[2...].allSatisfy { $0.shape.elementCount % max(i[0].shape.last, 1) == 0 },
      "normed_product: \(i.map(\.shape))")
    return [i[0]]
  }
  public func reference(_ a: inout HostArguments) {
    func without<T>(_ all: [T]) -> [T] { [all[0]] + all[2...] }
    var normed = HostArguments(
      inputs: without(a.inputs), inputSpecs: without(a.inputSpecs), outputSpecs: a.outputSpecs)
    norm.reference(&normed)
    a.outputs[0] = zip(normed.outputs[0], a.inputs[1]).map { $0 * $1 }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }

  public static let cases = [
    ("layer per head", true, [[5, 4, 24], [5, 4, 24], [96]]),
    ("layer bias", true, [[5, 512], [5, 512], [512], [512]]),
    ("rms", false, [[5, 37], [5, 37], [37]]),
  ].map { label, centers, shapes in
    OpCase(
      label, NormedProduct(Norm(epsilon: 1e-5, centers: centers)),
      shapes.map { TestInput(Shape($0), differentiable: false) })
  }
}
