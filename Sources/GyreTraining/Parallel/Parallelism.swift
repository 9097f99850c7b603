import GyreModels
import GyreRecurrence
import GyreTensors

/// How a run is spread over ranks: groups of rows, and within each the parts of their tokens.
///
/// Rank r of D·S works on rows [d·B/D, (d+1)·B/D) and tokens [s·T/S, (s+1)·T/S) with d = r / S, s = r mod
/// S. The gradient is the sum over ranks, each weighted by its part of the tokens that are predicted, so
/// that losses are those of one device but for rounding.
public struct Parallelism: Sendable {
  public let communicator: any Communicator
  /// S, parts of a sequence.
  public let parts: Int

  /// - Throws: `configuration` when the ranks cannot be arranged so.
  public init(_ communicator: any Communicator, parts: Int = 1) throws(TrainingError) {
    guard parts >= 1, communicator.count % parts == 0 else {
      throw .configuration(
        "sequence parts: must divide the \(communicator.count) ranks, are \(parts)")
    }
    self.communicator = communicator
    self.parts = parts
  }

  /// D, groups of rows.
  public var groups: Int { communicator.count / parts }
  public var group: Int { communicator.rank / parts }
  public var part: Int { communicator.rank % parts }
  /// Whether this rank writes files and shows progress.
  public var isLead: Bool { communicator.rank == 0 }

  /// This rank's rows and tokens of a batch.
  ///
  /// - Throws: `configuration` when they cannot be cut evenly.
  func share(
    batch: Int, length: Int
  ) throws(TrainingError) -> (rows: Range<Int>, tokens: Range<Int>) {
    guard batch % groups == 0 else {
      throw .configuration("batch: must be a multiple of the \(groups) groups, is \(batch)")
    }
    guard length % parts == 0 else {
      throw .configuration("length: must be a multiple of the \(parts) parts, is \(length)")
    }
    let (rows, tokens) = (batch / groups, length / parts)
    return (group * rows..<(group + 1) * rows, part * tokens..<(part + 1) * tokens)
  }
}

/// What one rank trains on of each batch.
struct Share {
  let rows: Range<Int>
  let tokens: Range<Int>
  private let length: Int

  init(
    _ parallel: Parallelism, batch: Int, length: Int
  ) throws(TrainingError) {
    let share = try parallel.share(batch: batch, length: length)
    (rows, tokens, self.length) = (share.rows, share.tokens, length)
  }

  var shape: Shape { [rows.count, tokens.count] }

  /// This rank's part of `[B, T]` values.
  func cut(_ values: [Int32]) -> [Int32] {
    rows.flatMap { row in
      values[row * length + tokens.lowerBound..<row * length + tokens.upperBound]
    }
  }

  /// The part of a batch's predictions that are this rank's: what its mean loss counts for.
  func weight(of targets: [Int32]) -> Double {
    let all = targets.count { $0 >= 0 }
    return Double(cut(targets).count { $0 >= 0 }) / Double(max(all, 1))
  }
}
