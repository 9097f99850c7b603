import GyreTensors
import Synchronization

/// Cosines and sines of rotary positions from 0 on, `[positions, pairs]`: making them takes longer than
/// turning rows by them.
final class RotaryTables: Sendable {
  static let shared = RotaryTables()

  struct Rates: Hashable {
    var values: [Double]
    var magnitude: Double
  }
  struct Table: Sendable {
    var cosine: [Float] = []
    var sine: [Float] = []
    /// The position of the first row.
    var first = 0
  }

  private let kept = Mutex<[Rates: Table]>([:])

  /// A table that has rows for `positions`.
  func table(_ rates: Rates, positions: Range<Int>) -> Table {
    let pairs = rates.values.count
    let most = 1 << 22
    guard pairs > 0, positions.upperBound * pairs <= most else {
      return RotaryTables.extended(
        Table(first: positions.lowerBound), rates, to: positions.upperBound)
    }
    return kept.withLock { kept in
      let present = kept[rates] ?? Table()
      let rows = present.cosine.count / pairs
      if rows >= positions.upperBound { return present }
      let table = RotaryTables.extended(
        present, rates, to: min(max(positions.upperBound, 2 * rows), most / pairs))
      // Models have one set of rates or two.
      if kept[rates] == nil, kept.count >= 8 { kept.removeAll() }
      kept[rates] = table
      return table
    }
  }

  private static func extended(_ table: Table, _ rates: Rates, to end: Int) -> Table {
    var result = table
    let begin = table.first + table.cosine.count / max(rates.values.count, 1)
    result.cosine.reserveCapacity((end - table.first) * rates.values.count)
    result.sine.reserveCapacity((end - table.first) * rates.values.count)
    for position in begin..<max(begin, end) {
      for rate in rates.values {
        let angle = Double(position) * rate
        result.cosine.append(Float(rates.magnitude * Functions.cos(angle)))
        result.sine.append(Float(rates.magnitude * Functions.sin(angle)))
      }
    }
    return result
  }
}
