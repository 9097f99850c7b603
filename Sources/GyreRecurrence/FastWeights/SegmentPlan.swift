import GyreTensors

/// How a call's tokens fall into segments of a fixed length that are counted from the start of each
/// document: what layers with mini-batches, blocks or chunks of their own walk.
///
/// State: "position" `[1]`, tokens into the current segment; nil while no `reset` was ever given, since
/// then the token count tells. Only calls with it or with resets read the host.
public struct SegmentPlan: Sendable {
  /// Tokens over which no row begins a document but at the first, or ends a segment but at the last.
  public struct Piece: Sendable {
    public var range: Range<Int>
    /// Rows in which the piece's first token begins a document.
    public var starts: [Bool]
    /// Rows in which its last token ends a segment.
    public var ends: [Bool]
  }
  public let period: Int
  public let pieces: [Piece]
  /// `[row][token]`: how many tokens of its segment lie before it.
  public let positions: [[Int]]
  /// `[row][token]`: whether a document begins there, as far as `reset` says.
  public let documents: [[Bool]]

  public static let entry = StateSpec.Entry("position", [1])

  /// - Parameters:
  ///   - x: `[B, T, …]`.
  ///   - period: tokens a segment.
  ///   - limit: longest piece; nil for none but the period.
  ///   - state: has `entry`, which is replaced.
  public init(
    _ x: Tensor, period: Int, limit: Int? = nil, state: inout State, reset: Tensor?
  ) {
    let (batch, tokens) = (x.shape[0], x.shape[1])
    self.period = period
    var now = [Int](repeating: state.tokenCount % period, count: batch)
    if let known = state[Self.entry.name] {
      let values = Self.host(known) { (t) throws(DeviceError) in try t.doubles() }
      now = values.map { Int(max($0, 0)) % period }
      if now.count != batch { now = [Int](repeating: 0, count: batch) }
    }
    var documents = [[Bool]](repeating: [Bool](repeating: false, count: tokens), count: batch)
    if let reset {
      let values = Self.host(reset) { (t) throws(DeviceError) in try t.doubles() }
      for (i, value) in values.enumerated() where value != 0 {
        documents[i / max(tokens, 1)][i % max(tokens, 1)] = true
      }
    }
    var positions = [[Int]](repeating: [], count: batch)
    for b in 0..<batch {
      for t in 0..<tokens {
        if documents[b][t] { now[b] = 0 }
        positions[b].append(now[b])
        now[b] = (now[b] + 1) % period
      }
    }
    var pieces: [Piece] = []
    var first = 0
    for t in 0..<tokens {
      let ends = positions.map { $0[t] == period - 1 }
      let isLast =
        t + 1 == tokens || ends.contains(true) || documents.contains { $0[t + 1] }
        || t + 1 - first == limit
      if isLast {
        pieces.append(
          Piece(range: first..<t + 1, starts: documents.map { $0[first] }, ends: ends))
        first = t + 1
      }
    }
    (self.pieces, self.positions, self.documents) = (pieces, positions, documents)
    if reset != nil || state[Self.entry.name] != nil {
      state[Self.entry.name] = Tensor(now.map(Float.init), shape: [batch, 1], on: x.device)
    }
  }

  /// `[B, T, …]` by pieces, in one op: its gradient is one too.
  public func split(_ t: Tensor) -> [Tensor] {
    pieces.isEmpty ? [] : t.split(pieces.map(\.range.count), axis: 1)
  }

  /// Values on the host; zeros and a failed device where they cannot be read.
  private static func host(
    _ t: Tensor, _ read: (Tensor) throws(DeviceError) -> [Double]
  ) -> [Double] {
    do throws(DeviceError) { return try read(t) } catch {
      t.device.fail(error)
      return [Double](repeating: 0, count: t.elementCount)
    }
  }

  /// The longest piece of a form.
  public static func limit(_ form: SequenceForm) -> Int? {
    switch form {
    case .recurrent: 1
    case .chunkwise(let size): max(size, 1)
    case .parallel: nil
    }
  }

  /// The positions of a piece's tokens, row by row and `repeats` times for each row, int32.
  public func index(_ range: Range<Int>, repeats: Int, on device: any Device) -> Tensor {
    let values = positions.flatMap { row in
      (0..<repeats).flatMap { _ in row[range].map(Int32.init) }
    }
    return Tensor(values, shape: [values.count], on: device)
  }
}

extension Tensor {
  /// The last `count` of axis 1. Slices that tile an axis have a gradient that tiles it.
  package func end(_ count: Int) -> Tensor {
    let rest = shape[1] - count
    return rest == 0 ? self : split([rest, count], axis: 1)[1]
  }

  /// Rows of the first axis for which `choose` holds taken from `other`, of the same shape.
  public func replacing(rows choose: [Bool], by other: Tensor) -> Tensor {
    guard choose.contains(true) else { return self }
    if !choose.contains(false) { return other }
    let flat: Shape = [shape[0], elementCount / max(shape[0], 1)]
    let mask = Tensor(choose.map { $0 ? Float(1) : 0 }, shape: [shape[0], 1], on: device)
    let mixed = reshaped(flat) * (1 - mask) + other.reshaped(flat) * mask
    return mixed.reshaped(shape)
  }
}
