import GyreLayers
import GyreTensors

extension ModelConfiguration {
  /// The norm of a sublayer of `layer`, or of the embedding.
  func makeNorm(
    _ name: String, layer: Int = 0, readsStream: Bool = false, _ p: inout ParameterBuilder
  ) throws(ConfigurationError) -> NormLayer {
    try NormLayer(
      name, width, kind: readsStream ? .none : norm, epsilon: normEpsilon * halvings(before: layer),
      bias: normBias ?? (norm == .layer), &p)
  }

  /// The norm before the head.
  func makeFinalNorm(_ p: inout ParameterBuilder) throws(ConfigurationError) -> NormLayer {
    try NormLayer(
      "norm", width, kind: norm,
      epsilon: (finalNormEpsilon ?? normEpsilon) * halvings(before: layers),
      bias: finalNormBias ?? normBias ?? (norm == .layer), &p)
  }

  func makeResidualAttention(
    _ name: String, _ p: inout ParameterBuilder
  ) throws(ConfigurationError) -> ResidualAttention {
    try ResidualAttention(name, width: width, epsilon: normEpsilon, &p)
  }

  /// 4ⁿ for the n times that the stream was halved before a layer.
  private func halvings(before layer: Int) -> Double {
    halvingInterval > 0 ? Functions.pow(4, Double(layer / halvingInterval)) : 1
  }
}
