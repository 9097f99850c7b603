import GyreLayers
import GyreModels
import GyreTensors

extension LanguageModel {
  /// The loss of a batch, whose gradients are added to `sums`.
  ///
  /// - Parameters:
  ///   - state: read before the first token and replaced, cut off from the tape.
  ///   - keepsState: whether anybody reads it then.
  ///   - weight: multiplies the loss; nil for 1.
  ///   - whenDone: see `Tape.gradients`.
  func loss(
    _ tokens: Tensor, targets: Tensor, reset: Tensor?, state: inout ModelState, keepsState: Bool,
    dropout: DropoutNoise, precision: ComputePrecision, weight: Double? = nil,
    gradients sums: inout GradientSums, whenDone: ((Int, Tensor) -> Void)? = nil
  ) -> Tensor {
    let variables = parameters.map(\.value)
    let tape = Tape()
    tape.watch(variables)
    var carried = state.detached()
    carried.isLast = !keepsState
    let loss = ComputePrecision.$current.withValue(precision) {
      tape.record {
        let mean = self.loss(
          tokens, targets: targets, state: &carried, reset: reset, dropout: dropout
        ).mean
        return weight.map { mean * $0 } ?? mean
      }
    }
    ComputePrecision.$current.withValue(precision) {
      tape.gradients(of: loss, for: variables, addingTo: &sums, whenDone: whenDone)
    }
    state = carried.detached()
    return loss
  }
}
