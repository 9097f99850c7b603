import Synchronization

/// Records ops for backpropagation while it is bound to the current task.
///
/// No tape bound is inference: it costs one task-local read an op.
public final class Tape: Sendable {
  @TaskLocal public static var current: Tape?

  private enum Entry {
    case op(any Op, inputs: [Tensor], outputs: [Tensor])
    case segment(
      @Sendable ([Tensor]) -> [Tensor], inputs: [Tensor], outputs: [Tensor],
      precision: ComputePrecision)
    case function(inputs: [TensorID], outputs: [Tensor], Derivative)
  }
  /// Cotangents of the inputs from those of the outputs.
  package typealias Derivative = @Sendable ([Tensor?]) -> [Tensor?]
  private struct Log {
    var entries: [Entry] = []
    var tracked: Set<TensorID> = []
  }
  private let log = Mutex(Log())

  public init() {}

  /// Runs `body` while this tape records.
  public func record<R, E: Error>(_ body: () throws(E) -> R) throws(E) -> R {
    try withTape(self, body)
  }

  /// Makes `tensors` variables: gradients with respect to them can be asked for.
  public func watch(_ tensors: some Sequence<Tensor>) {
    log.withLock { for t in tensors { $0.tracked.insert(t.id) } }
  }

  func isTracked(_ t: Tensor) -> Bool { log.withLock { $0.tracked.contains(t.id) } }

  package func record(_ op: any Op, inputs: [Tensor], outputs: [Tensor]) {
    log.withLock { log in
      guard inputs.contains(where: { log.tracked.contains($0.id) }) else { return }
      let saved = op.saved
      for o in outputs where o.dtype.isFloat { log.tracked.insert(o.id) }
      log.entries.append(
        .op(
          op,
          inputs: inputs.enumerated().map {
            saved.keepsInput($0.offset) ? $0.element : $0.element.shell
          },
          outputs: outputs.enumerated().map {
            saved.keepsOutput($0.offset) ? $0.element : $0.element.shell
          }))
    }
  }

  /// Records that `outputs` were made of `inputs` in a way that no op knows, such as on another device.
  /// Outputs count as tracked, and `derivative` runs in the backward pass even when nothing on this
  /// tape depends on them: somebody else may wait for it.
  package func record(
    inputs: [Tensor], outputs: [Tensor], derivative: @escaping Derivative
  ) {
    log.withLock { log in
      for o in outputs { log.tracked.insert(o.id) }
      log.entries.append(
        .function(inputs: inputs.map(\.id), outputs: outputs.map(\.shell), derivative))
    }
  }

  /// Runs `body` without keeping what happens inside; the backward pass runs it again
  /// (activation checkpointing). All tensors that `body` uses are `inputs` or parameters.
  public static func rematerialize(
    _ inputs: [Tensor], _ body: @escaping @Sendable ([Tensor]) -> [Tensor]
  ) -> [Tensor] {
    guard let tape = current else { return body(inputs) }
    let outputs = withTape(nil) { body(inputs) }
    tape.log.withLock { log in
      for o in outputs where o.dtype.isFloat { log.tracked.insert(o.id) }
      log.entries.append(
        .segment(
          body, inputs: inputs, outputs: outputs.map(\.shell), precision: ComputePrecision.current))
    }
    return outputs
  }

  /// The gradient of the sum of `loss` with respect to each of `variables`; nil where `loss` does
  /// not depend on it. Empties the tape, releasing activations as it goes.
  public func gradients(of loss: Tensor, for variables: [Tensor]) -> [Tensor?] {
    gradients(of: [(loss, .full(1, loss.shape, on: loss.device))], for: variables)
  }

  /// The gradient of Σ ⟨output, cotangent⟩ with respect to each of `variables`.
  public func gradients(of outputs: [(Tensor, Tensor)], for variables: [Tensor]) -> [Tensor?] {
    withTape(nil) {
      var table = GradientTable()
      for (output, cotangent) in outputs { table.add(cotangent, to: output.id) }
      propagate(&table)
      return variables.map { table.settled($0.id) }
    }
  }

  /// Adds the gradient of the sum of `loss` with respect to each of `variables` to `sums`, to the rows only
  /// that the loss looked up where it uses a variable in no other way.
  ///
  /// - Parameter whenDone: called with the place of a variable that is a linear map's weight as soon as its
  ///   float32 gradient is complete, while others are still worked on; nobody reads or writes it after that.
  public func gradients(
    of loss: Tensor, for variables: [Tensor], addingTo sums: inout GradientSums,
    whenDone: ((Int, Tensor) -> Void)? = nil
  ) {
    withTape(nil) {
      var table = GradientTable()
      // Where products can add, gradients start from the sums so far.
      let starts = sums.starts(on: loss.device)
      for (variable, start) in zip(variables, starts) {
        if let start { table.start(variable.id, start) }
      }
      table.add(.full(1, loss.shape, on: loss.device), to: loss.id)
      if let whenDone {
        let present = sums.tensors.map { $0 != nil }
        table.expect(uses(of: variables)) { i, gradient in
          if starts[i] != nil || !present[i] { whenDone(i, gradient) }
        }
      }
      propagate(&table)
      for (i, variable) in variables.enumerated() where starts[i] == nil {
        sums.add(&table, variable.id, at: i)
      }
      for (i, variable) in variables.enumerated() where starts[i] != nil {
        _ = table.settled(variable.id)
        sums.own(i)
      }
    }
  }

  /// Of each variable its place and how many inputs of ops it is; none where ops are run again.
  private func uses(of variables: [Tensor]) -> [TensorID: (place: Int, count: Int)] {
    log.withLock { log in
      var result: [TensorID: (place: Int, count: Int)] = [:]
      for (i, variable) in variables.enumerated() { result[variable.id] = (i, 0) }
      for entry in log.entries {
        switch entry {
        case .op(_, let inputs, _): for input in inputs { result[input.id]?.count += 1 }
        case .function(let inputs, _, _): for id in inputs { result[id]?.count += 1 }
        case .segment: return [:]
        }
      }
      return result
    }
  }

  private func propagate(_ table: inout GradientTable) {
    let tracked = log.withLock { $0.tracked }
    while let entry = log.withLock({ $0.entries.popLast() }) {
      switch entry {
      case .op(let op, let inputs, let outputs):
        defer { table.pass(inputs, isLinear: op is LinearMap || op is LinearPieces) }
        var more = [Tensor?](repeating: nil, count: outputs.count)
        var sums = (op as? any SumsCotangents)?.mostSums ?? 0
        let cotangents = outputs.enumerated().map { i, output in
          if sums > 0, (op as? any SumsCotangents)?.sums(output: i) == true,
            let second = table.takeSecond(output.id)
          {
            more[i] = second
            sums -= 1
          }
          return table.take(output.id)
        }
        guard cotangents.contains(where: { $0 != nil }) else { continue }
        let needs = inputs.map { tracked.contains($0.id) }
        if op is EmbeddingLookup, needs[0], let gradient = cotangents[0],
          inputs[1].device.hasKernel(for: RowsAdded())
        {
          table.add(
            Rows(tokens: inputs[1], values: gradient, shape: inputs[0].shape), to: inputs[0].id)
          continue
        }
        let adds = op as? any AddsGradients
        let before = inputs.enumerated().map { i, input in
          needs[i] && adds?.adds(input: i) == true ? table.takeHalf(input.id) : nil
        }
        let gradients = op.vjp(
          VJPContext(
            inputs: inputs, outputs: outputs, cotangents: cotangents, needs: needs,
            sums: zip(inputs, needs).map { $1 ? table.sum($0.id) : nil }, more: more,
            before: before))
        for (i, gradient) in gradients.enumerated() {
          if needs[i], let gradient { table.add(gradient, to: inputs[i].id) }
        }
      case .function(let inputs, let outputs, let derivative):
        for (id, gradient) in zip(inputs, derivative(outputs.map { table.take($0.id) })) {
          if let gradient, tracked.contains(id) { table.add(gradient, to: id) }
        }
      case .segment(let body, let inputs, let shells, let precision):
        let cotangents = shells.map { table.take($0.id) }
        guard cotangents.contains(where: { $0 != nil }) else { continue }
        let inner = Tape()
        inner.log.withLock { $0.tracked = tracked }
        let outputs = ComputePrecision.$current.withValue(precision) {
          inner.record { body(inputs) }
        }
        for (output, cotangent) in zip(outputs, cotangents) {
          if let cotangent { table.add(cotangent, to: output.id) }
        }
        inner.propagate(&table)
      }
    }
  }
}

/// Binds the tape; an untyped-throws task local call in a typed one.
private func withTape<R, E: Error>(_ tape: Tape?, _ body: () throws(E) -> R) throws(E) -> R {
  let result: Result<R, E> = Tape.$current.withValue(tape) {
    do throws(E) { return .success(try body()) } catch { return .failure(error) }
  }
  return try result.get()
}

/// The precision in which matrix products multiply; sums are float32 always.
public enum ComputePrecision: String, Sendable, Hashable, Codable {
  case float32, bfloat16
  /// The precision that ops made in this task take.
  @TaskLocal public static var current: ComputePrecision = .float32

  /// The element type of what maps of activations write on a device in the current precision.
  package static func activations(on device: any Device) -> DType {
    current == .bfloat16 && device.storesBFloat16 ? .bfloat16 : .float32
  }

  /// The element type of what one product writes for a function whose result the next one reads: no wider
  /// than products read, where the device multiplies stored bfloat16.
  package static func betweenProducts(on device: any Device) -> DType {
    let reads = device.multiplies(stored: .bfloat16) && Perturbation.current == nil
    return current == .bfloat16 && reads ? .bfloat16 : activations(on: device)
  }
}

extension Tensor {
  /// The same value under a new identity that no tape has seen.
  public func detached() -> Tensor { aliased(as: shape) }
}
