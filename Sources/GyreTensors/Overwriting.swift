/// Storage that ops may overwrite with the value that takes its place: states of a step whose old value
/// nobody reads again.
package enum Overwriting {
  @TaskLocal private static var buffers: Set<ObjectIdentifier> = []

  /// Runs `body`, in which ops may write into the storage of `tensors`.
  ///
  /// - Precondition: `body` reads each of them in one op at most.
  package static func storage<R>(of tensors: [Tensor], _ body: () -> R) -> R {
    let buffers = tensors.compactMap { $0.buffer.map(ObjectIdentifier.init) }
    return $buffers.withValue(Set(buffers), operation: body)
  }

  /// The output of an op that may lie where one of its inputs does; nil for none.
  static func output(of op: some Op, _ inputs: [Tensor]) -> (place: Int, tensor: Tensor)? {
    if buffers.isEmpty { return nil }
    guard let (input, output) = inputs[0].device.overwrites(op, inputs),
      let buffer = inputs[input].buffer, buffers.contains(ObjectIdentifier(buffer))
    else { return nil }
    return (output, inputs[input].aliased(as: inputs[input].shape))
  }
}
