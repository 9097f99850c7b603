/// What a look-up adds to the gradient of its table.
struct Rows {
  let tokens, values: Tensor
  /// Of the table.
  let shape: Shape

  /// The gradient of the look-up alone.
  var dense: Tensor {
    apply(EmbeddingLookup.Backward(vocabulary: shape[0]), [values, tokens])[0]
  }
  /// Adds the rows to a sum that nobody else has.
  func add(into sum: Tensor) {
    sum.device.launch(KernelCall(op: RowsAdded(), inputs: [sum, values, tokens], outputs: [sum]))
  }
  func added(to sum: Tensor) -> Tensor { apply(RowsAdded(), [sum, values, tokens])[0] }
}

/// Gradients on their way back through a tape.
struct GradientTable {
  private var values: [TensorID: Tensor] = [:]
  /// Second terms that are not added yet: whoever takes the sum may do so while reading.
  private var seconds: [TensorID: Tensor] = [:]
  /// Sums that this table made itself and may add into.
  private var owned: Set<TensorID> = []
  /// Rows to be added to values, in this order.
  private var rows: [TensorID: [Rows]] = [:]

  /// Variables whose gradient somebody waits for, with the uses that are still to come.
  private var awaited: [TensorID: (place: Int, count: Int)] = [:]
  private var whenDone: ((Int, Tensor) -> Void)?

  mutating func expect(
    _ uses: [TensorID: (place: Int, count: Int)], _ whenDone: @escaping (Int, Tensor) -> Void
  ) {
    (awaited, self.whenDone) = (uses, whenDone)
  }

  /// Notes that an op has given its gradients. A linear map makes that of its weight itself, so that no other
  /// tensor shares its memory.
  mutating func pass(_ inputs: [Tensor], isLinear: Bool) {
    guard let whenDone else { return }
    for (i, input) in inputs.enumerated() {
      guard var use = awaited[input.id] else { continue }
      use.count -= 1
      awaited[input.id] = use
      if use.count == 0, isLinear, i == 1, rows[input.id] == nil, let sum = settled(input.id),
        sum.dtype == .float32
      {
        whenDone(use.place, sum)
      }
    }
  }

  /// The sum for a tensor.
  mutating func settled(_ id: TensorID) -> Tensor? {
    for part in rows.removeValue(forKey: id) ?? [] {
      if let present = values[id], owned.contains(present.id) {
        part.add(into: present)
      } else {
        let sum = values[id].map { part.added(to: $0) } ?? part.dense
        owned.insert(sum.id)
        values[id] = sum
      }
    }
    if let second = seconds.removeValue(forKey: id), let present = values[id] {
      join(present, second, id)
    }
    return values[id]
  }

  /// The second term of a tensor's gradient, where it has two.
  mutating func takeSecond(_ id: TensorID) -> Tensor? {
    rows[id] == nil ? seconds.removeValue(forKey: id) : nil
  }

  /// The bfloat16 sum for a tensor, for an op that gives it back with more added.
  mutating func takeHalf(_ id: TensorID) -> Tensor? {
    values[id]?.dtype == .bfloat16 ? take(id) : nil
  }

  /// Whether nobody else has the sum for a tensor.
  func owns(_ id: TensorID) -> Bool { values[id].map { owned.contains($0.id) } ?? false }

  /// The rows for a tensor whose gradient is nothing but rows.
  mutating func takeRows(_ id: TensorID) -> [Rows]? {
    values[id] == nil ? rows.removeValue(forKey: id) : nil
  }

  /// A tensor that is handed out may come back as the gradient of several others (both terms of a sum
  /// get the sum's), so nothing may be added into it any more.
  mutating func take(_ id: TensorID) -> Tensor? {
    guard let value = settled(id) else { return nil }
    values[id] = nil
    owned.remove(value.id)
    return value
  }

  /// Starts from a sum that may be added into.
  mutating func start(_ id: TensorID, _ sum: Tensor) {
    values[id] = sum
    owned.insert(sum.id)
  }

  /// The sum for a tensor that ops may add into.
  func sum(_ id: TensorID) -> Tensor? {
    guard let sum = values[id], owned.contains(sum.id), sum.dtype == .float32 else { return nil }
    return sum
  }

  mutating func add(_ part: Rows, to id: TensorID) { rows[id, default: []].append(part) }

  mutating func add(_ gradient: Tensor, to id: TensorID) {
    if let present = values[id], rows[id] == nil, seconds[id] == nil, !owned.contains(present.id),
      present.dtype == .bfloat16, gradient.dtype == .bfloat16, present.shape == gradient.shape
    {
      seconds[id] = gradient
      return
    }
    guard let present = settled(id) else {
      values[id] = gradient
      return
    }
    // Added in place by the op.
    if present.id == gradient.id, owned.contains(present.id) { return }
    join(present, gradient, id)
  }

  private mutating func join(_ present: Tensor, _ gradient: Tensor, _ id: TensorID) {
    precondition(
      present.shape == gradient.shape,
      "gradient: \(gradient.shape) added to \(present.shape)")
    if owned.contains(present.id) {
      present.device.launch(
        KernelCall(op: Binary(.add), inputs: [present, gradient], outputs: [present]))
    } else {
      let sum = present + gradient
      owned.insert(sum.id)
      values[id] = sum
    }
  }
}

/// Gradients of several losses, added up. Sums are updated in place where nobody else has them, and those of
/// tables that losses look rows up in at these rows only.
public struct GradientSums: Sendable {
  /// One a variable; nil while no loss depends on it.
  public private(set) var tensors: [Tensor?]
  private var owned: [Bool]

  public init(count: Int) {
    tensors = .init(repeating: nil, count: count)
    owned = .init(repeating: false, count: count)
  }

  /// The sums that gradients may start from on a device whose products add to what is there: float32, no
  /// storage shared.
  func starts(on device: any Device) -> [Tensor?] {
    guard device.storesBFloat16 else { return tensors.map { _ in nil } }
    var holders: [ObjectIdentifier: Int] = [:]
    for case let buffer? in tensors.map({ $0?.buffer }) {
      holders[ObjectIdentifier(buffer), default: 0] += 1
    }
    return tensors.map { sum in
      guard let sum, let buffer = sum.buffer, sum.dtype == .float32,
        holders[ObjectIdentifier(buffer)] == 1
      else { return nil }
      return sum
    }
  }

  /// Notes that a sum was started from.
  mutating func own(_ i: Int) { owned[i] = true }

  /// A sum may be float32, bfloat16, or of the device's choice.
  mutating func add(_ table: inout GradientTable, _ id: TensorID, at i: Int) {
    if let sum = tensors[i], let rows = table.takeRows(id) {
      // Two look-ups' rows are added up before they are added to the sum, as dense gradients are.
      if rows.count == 1, let only = rows.first {
        if owned[i] { only.add(into: sum) } else { tensors[i] = only.added(to: sum) }
        owned[i] = true
        return
      }
      for part in rows { table.add(part, to: id) }
    }
    guard let gradient = table.settled(id) else { return }
    guard let sum = tensors[i] else {
      (tensors[i], owned[i]) = (gradient, table.owns(id))
      return
    }
    if owned[i], sum.dtype == gradient.dtype {
      sum.device.launch(KernelCall(op: Binary(.add), inputs: [sum, gradient], outputs: [sum]))
    } else {
      tensors[i] = sum + gradient
      owned[i] = true
    }
  }
}
