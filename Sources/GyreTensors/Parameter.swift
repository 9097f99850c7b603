import Synchronization

/// How weight decay treats a parameter.
public enum WeightDecay: String, Sendable, Hashable, Codable {
  /// Matrices of linear maps: decayed.
  case matrix
  /// Norm weights, biases, decay rates, embeddings where the recipe says so: not decayed.
  case none
}

/// A trained tensor with a name. The float32 master value is updated in place by optimisers, so its
/// identity is stable over a run.
public final class Parameter: Sendable {
  public let name: String
  public let decay: WeightDecay
  /// Factor on the learning rate.
  public let learningRateScale: Double
  private let stored: Mutex<Tensor>

  public init(
    name: String, value: Tensor, decay: WeightDecay = .matrix, learningRateScale: Double = 1
  ) {
    self.name = name
    self.decay = decay
    self.learningRateScale = learningRateScale
    stored = Mutex(value)
  }

  public var value: Tensor {
    get { stored.withLock { $0 } }
    set {
      stored.withLock { old in
        precondition(
          old.shape == newValue.shape,
          "parameter \(name): \(newValue.shape) assigned to \(old.shape)")
        old = newValue
      }
    }
  }
  public var shape: Shape { value.shape }
}
