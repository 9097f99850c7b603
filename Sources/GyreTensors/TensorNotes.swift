import Synchronization

/// Something known about a tensor beside its value.
package protocol TensorNote: AnyObject, Sendable {}

// MARK: - Rows of a table

/// The tensor is `table[tokens]` with far fewer rows in the table than tokens. What acts on each row
/// alone (a norm, a linear map) is then done to the table, and the results are looked up:
/// f(E[tokens]) = f(E)[tokens].
final class LookupOrigin: TensorNote {
  let table: Tensor
  let tokens: Tensor
  init(table: Tensor, tokens: Tensor) {
    self.table = table
    self.tokens = tokens
  }
}

extension Tensor {
  /// The same tensor, known to be `table[tokens]` where that saves work.
  func looked(up tokens: Tensor, in table: Tensor) -> Tensor {
    // A table in a stored type has no maps of its rows but this one.
    guard tokens.elementCount >= 2 * table.shape[0], table.dtype == dtype else { return self }
    return Tensor(
      shape: shape, dtype: dtype, device: device, buffer: buffer, byteOffset: byteOffset, id: id,
      note: LookupOrigin(table: table, tokens: tokens))
  }

  /// A map of each row, of the table's rows where the tensor is looked up in one.
  func mapRows(_ body: (Tensor) -> Tensor) -> Tensor {
    mapRows { [body($0)] }[0]
  }

  /// The same for several maps of each row.
  func mapRows(_ body: (Tensor) -> [Tensor]) -> [Tensor] {
    guard let origin = note as? LookupOrigin else { return body(self) }
    return body(origin.table).map { $0.rows(origin.tokens, output: $0.dtype) }
  }
}

// MARK: - Room to grow

/// The tensor ends inside a larger buffer; who first claims the bytes after it may write them.
/// Tensors never see bytes written after they were made, so copies of a growing cache stay values.
final class SpareRoom: TensorNote {
  let capacity: Int
  private let used: Atomic<Int>
  init(capacity: Int, used: Int) {
    self.capacity = capacity
    self.used = Atomic(used)
  }
  /// Takes `count` bytes from `end` on, unless somebody else has.
  func claim(_ count: Int, from end: Int) -> Bool {
    end + count <= capacity
      && used.compareExchange(
        expected: end, desired: end + count, ordering: .acquiringAndReleasing
      ).exchanged
  }
}

extension Tensor {
  /// This tensor followed by `next` along axis 1, as `concatenated` gives it. One sequence (axis 0 is
  /// 1) that no tape records grows in place: a cache of n tokens costs O(n) copies in all, not O(n²).
  public func growing(by next: Tensor) -> Tensor {
    guard shape[0] == 1, Tape.current == nil, dtype == next.dtype, next.shape[0] == 1 else {
      return concatenated([self, next], axis: 1)
    }
    let end = byteOffset + byteCount
    if let room = note as? SpareRoom, room.claim(next.byteCount, from: end) {
      return grown(buffer, byteOffset, room, next)
    }
    let total = byteCount + next.byteCount
    let capacity = max(2 * total, 1 << 14)
    let storage: any DeviceBuffer
    do { storage = try device.allocate(byteCount: capacity) } catch {
      device.fail(error)
      return concatenated([self, next], axis: 1)
    }
    let room = SpareRoom(capacity: capacity, used: total)
    let moved = Tensor(shape: shape, dtype: dtype, device: device, buffer: storage)
    if elementCount > 0 { moved.fill(from: self) }
    return moved.grown(storage, 0, room, next)
  }

  private func grown(
    _ buffer: (any DeviceBuffer)?, _ start: Int, _ room: SpareRoom, _ next: Tensor
  ) -> Tensor {
    let tail = Tensor(
      shape: next.shape, dtype: dtype, device: device, buffer: buffer,
      byteOffset: start + byteCount)
    tail.fill(from: next)
    var grown = shape
    grown[1] += next.shape[1]
    return Tensor(
      shape: grown, dtype: dtype, device: device, buffer: buffer, byteOffset: start, note: room)
  }

  private func fill(from source: Tensor) {
    let op = Assemble(axis: 1, extent: shape[1], ranges: [0..<shape[1]])
    device.launch(KernelCall(op: op, inputs: [source], outputs: [self]))
  }

  /// The last entries of axis 1, sharing storage where they lie together and no tape records.
  public func suffix(_ count: Int) -> Tensor {
    let extent = shape[1]
    if count >= extent { return self }
    guard shape[0] == 1, Tape.current == nil else {
      return sliced(extent - count..<extent, axis: 1)
    }
    var shape = shape
    shape[1] = count
    let dropped = byteCount / max(extent, 1) * (extent - count)
    return Tensor(
      shape: shape, dtype: dtype, device: device, buffer: buffer,
      byteOffset: byteOffset + dropped, note: note)
  }
}
