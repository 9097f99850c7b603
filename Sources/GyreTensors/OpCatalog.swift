/// Every op with cases, one line each. Conformance, gradient checks and benchmarks read this list.
public enum OpCatalog {
  public static let tensorOps: [any Op.Type] = [
    Cast.self,
    Unary.self,
    Binary.self,
    Affine.self,
    SumTo.self,
    LinearMap.self,
    MatMul.self,
    Reshape.self,
    Slice.self,
    Assemble.self,
    Permute.self,
    Softmax.self,
    ArgMax.self,
    SumOfSquares.self,
    Norm.self,
    GatedNorm.self,
    L2Normalize.self,
    GatedUnit.self,
    EmbeddingLookup.self,
    CrossEntropy.self,
    LinearCrossEntropy.self,
    AdamWStep.self,
    MomentumStep.self,
  ]
}
