import GyreLayers
import GyreModels
import GyreTensors

extension LanguageModel {
  /// The loss of a batch and its gradients.
  ///
  /// - Parameters:
  ///   - state: read before the first token and replaced, cut off from the tape.
  ///   - weight: multiplies the loss; nil for 1.
  ///   - sums: what gradients are added to in place; see `Tape`.
  func lossAndGradients(
    _ tokens: Tensor, targets: Tensor, reset: Tensor?, state: inout ModelState,
    dropout: DropoutNoise, precision: ComputePrecision, weight: Double? = nil,
    onto sums: [Tensor?] = []
  ) -> (loss: Tensor, gradients: [Tensor?]) {
    let variables = parameters.map(\.value)
    let tape = Tape()
    tape.watch(variables)
    var carried = state.detached()
    let loss = ComputePrecision.$current.withValue(precision) {
      tape.record {
        let mean = self.loss(
          tokens, targets: targets, state: &carried, reset: reset, dropout: dropout
        ).mean
        return weight.map { mean * $0 } ?? mean
      }
    }
    let gradients = ComputePrecision.$current.withValue(precision) {
      tape.gradients(of: loss, for: variables, onto: sums)
    }
    state = carried.detached()
    return (loss, gradients)
  }
}

/// Gradients of several batches, summed.
struct GradientSums {
  private(set) var values: [Tensor?]
  init(count: Int) { values = Array(repeating: nil, count: count) }

  /// Those to which a device adds gradients where they are made: float32, no storage shared.
  var bases: [Tensor?] {
    var holders: [ObjectIdentifier: Int] = [:]
    for case let buffer? in values.map({ $0?.buffer }) {
      holders[ObjectIdentifier(buffer), default: 0] += 1
    }
    return values.map { sum in
      guard let sum, let buffer = sum.buffer, sum.device.storesBFloat16, sum.dtype == .float32,
        holders[ObjectIdentifier(buffer)] == 1
      else { return nil }
      return sum
    }
  }

  /// - Parameter bases: what the gradients contain already.
  mutating func add(_ gradients: [Tensor?], onto bases: [Tensor?] = []) {
    for (i, gradient) in gradients.enumerated() {
      guard let gradient else { continue }
      if i < bases.count, bases[i] != nil {
        values[i] = gradient
        continue
      }
      values[i] = values[i].map { $0 + gradient } ?? gradient
    }
  }
}
