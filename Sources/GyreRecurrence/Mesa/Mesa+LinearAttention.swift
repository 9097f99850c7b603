import GyreTensors

/// What of MesaNet's memory is linear attention: devices with kernels for that solve and leave the rest to
/// them. With keys β k, H is the state of values k and G that of values v:
///
///     y = Gᵀ x        Q, with its dk and dg: queries z, values k, cotangents −x
///     u = G dy, P, with its dk, dv and dg: queries x, values v, cotangents dy
extension MesaForward {
  /// Possible inputs that are states.
  package enum MemoryInput: Int {
    case covariance = 6
    case values = 7
  }

  /// Inputs: queries, β k, values, g, then the state and the resets where present.
  package func attention(_ memory: MemoryInput, scale: Double = 1) -> LinearAttentionForward {
    let (hasState, hasReset) = (optional.has(memory.rawValue), optional.has(8))
    return LinearAttentionForward(
      form: .chunkwise, decay: .scalar, normalizer: .none, scale: scale,
      optional: OptionalInputs(
        [true, true, true, true, false, false, hasState, false, false, hasReset]))
  }
}

extension MesaBackward {
  /// Inputs: those of the forward, y, dy, then that of the final state where present.
  package func attention(
    _ memory: MesaForward.MemoryInput, scale: Double = 1
  ) -> LinearAttentionBackward {
    let op = forward.attention(memory, scale: scale)
    return LinearAttentionBackward(
      forward: op, inputCount: (0..<10).filter(op.optional.has).count,
      hasState: extra.has(memory == .covariance ? 2 : 3),
      hasNorm: false)
  }
}
