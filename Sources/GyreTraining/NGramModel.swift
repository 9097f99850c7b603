/// An interpolated n-gram model with Witten–Bell smoothing, the baseline of an evaluation:
///
///     P_n(w | c) = (count(c, w) + distinct(c) · P_{n−1}(w | c')) / (count(c) + distinct(c))
///
/// with c' the context without its oldest token and P₀ uniform. Witten and Bell, "The zero-frequency
/// problem", 1991. Counting is linear in tokens times the order.
public struct NGramModel: Sendable {
  public let order: Int
  private let vocabulary: Int
  private var counts = CountTable()
  private var totals = CountTable()
  private var distinct = CountTable()

  public init(_ tokens: [Int32], vocabulary: Int, order: Int = 5) {
    self.order = order
    self.vocabulary = vocabulary
    for i in tokens.indices {
      var context: UInt64 = 0x9E37_79B9_7F4A_7C15
      for n in 1...order {
        if n > 1 {
          guard i - n + 1 >= 0 else { break }
          context = NGramModel.mix(context, tokens[i - n + 1])
        }
        totals.add(context)
        if counts.add(NGramModel.mix(context ^ 0x5555, tokens[i])) == 1 { distinct.add(context) }
      }
    }
  }

  private static func mix(_ h: UInt64, _ token: Int32) -> UInt64 {
    var x = h ^ (UInt64(UInt32(bitPattern: token)) &+ 0x9E37_79B9_7F4A_7C15)
    x = (x ^ (x >> 30)) &* 0xBF58_476D_1CE4_E5B9
    x = (x ^ (x >> 27)) &* 0x94D0_49BB_1331_11EB
    return x ^ (x >> 31)
  }

  /// Bits of all tokens together under each order from 1 to `order`.
  public func bits(_ tokens: [Int32]) -> [Double] {
    var sums = [Double](repeating: 0, count: order)
    for i in tokens.indices {
      var p = 1 / Double(vocabulary)
      var context: UInt64 = 0x9E37_79B9_7F4A_7C15
      for n in 1...order {
        if n > 1, i - n + 1 >= 0 { context = NGramModel.mix(context, tokens[i - n + 1]) }
        if n == 1 || i - n + 1 >= 0 {
          let total = Double(totals[context])
          let kinds = Double(distinct[context])
          if total > 0 {
            p =
              (Double(counts[NGramModel.mix(context ^ 0x5555, tokens[i])]) + kinds * p)
              / (total + kinds)
          }
        }
        sums[n - 1] -= log2(p)
      }
    }
    return sums
  }

  private func log2(_ x: Double) -> Double { logarithm(x) / 0.693_147_180_559_945_3 }
}

/// 64-bit keys to counts by open addressing. Two keys that hash alike would share a count; at a
/// hundred million keys that is expected once in three thousand tables.
private struct CountTable: Sendable {
  private var keys = [UInt64](repeating: 0, count: 1 << 16)
  private var values = [UInt32](repeating: 0, count: 1 << 16)
  private var used = 0

  @discardableResult
  mutating func add(_ key: UInt64) -> UInt32 {
    if used * 4 > keys.count * 3 { grow() }
    let i = slot(key)
    if values[i] == 0 {
      keys[i] = key
      used += 1
    }
    values[i] += 1
    return values[i]
  }

  subscript(key: UInt64) -> UInt32 { values[slot(key)] }

  private func slot(_ key: UInt64) -> Int {
    let mask = keys.count - 1
    var i = Int(truncatingIfNeeded: key) & mask
    while values[i] != 0, keys[i] != key { i = (i + 1) & mask }
    return i
  }

  private mutating func grow() {
    let old = (keys, values)
    keys = [UInt64](repeating: 0, count: old.0.count * 2)
    values = [UInt32](repeating: 0, count: old.0.count * 2)
    for (key, value) in zip(old.0, old.1) where value != 0 {
      let i = slot(key)
      keys[i] = key
      values[i] = value
    }
  }
}
