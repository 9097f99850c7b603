import GyreTensors

/// Tokens a second of long sequences over those of short ones.
///
/// A training step has a number of tokens, so the comparison is between equal numbers of them; with equal
/// rows the short case may lie in caches that the long one does not fit.
enum LengthComparison {
  static let (short, long) = (1024, 16384)
  static let batch = 8
  static let shapes = [(batch * long / short, short), (batch, long), (batch, short)]

  static func name(_ engine: String, _ batch: Int, _ length: Int) -> String {
    "\(engine) \(batch) × \(length)"
  }

  /// A line an engine and pass; nil without such rows.
  static func table(_ rows: [Measurement]) -> Table? {
    var table = Table([
      ("tokens/s of \(batch) × \(long) over", .left), ("pass", .left),
      ("\(shapes[0].0) × \(short)", .right), ("\(batch) × \(short)", .right),
    ])
    let suffix = name("", batch, long)
    let found = rows.filter { $0.name.hasSuffix(suffix) }
    for row in found {
      let engine = String(row.name.dropLast(suffix.count))
      func ratio(_ shape: (Int, Int)) -> String {
        let other = rows.first {
          $0.name == name(engine, shape.0, shape.1) && $0.pass == row.pass
        }
        guard let mine = row.tokensPerS, let theirs = other?.tokensPerS else { return "" }
        return Format.fixed(mine / theirs, 2)
      }
      table.add([engine, row.pass, ratio(shapes[0]), ratio(shapes[2])])
    }
    return found.isEmpty ? nil : table
  }
}
