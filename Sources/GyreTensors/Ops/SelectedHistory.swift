/// Where the last few selected tokens of each lane lie: what a short convolution over those tokens
/// alone reads.
///
/// Rows of a table `[B, M, W + T, …]` are a row of zeros, the W − 1 last selected tokens before this
/// run, oldest first, and the run's tokens. Inputs: mask `[B, T, M]`, nonzero where lane m takes the
/// token, and where present reset int32 `[B, T]`, over which no history reaches. Outputs, int32 rows
/// of the flattened table: for j = 1 … W − 1 `[B, T, M]`, the j-th oldest of the W − 1 selected tokens
/// before a selected one (the zeros for others), then `[B, M, W − 1]`, the history at the end.
public struct SelectedHistory: Op {
  public static let name = "selected_history"
  /// W, the token itself included.
  public let width: Int
  public let hasReset: Bool

  public init(width: Int, hasReset: Bool) {
    self.width = width
    self.hasReset = hasReset
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let s = i[0].shape
    precondition(
      s.rank == 3 && width > 1 && (!hasReset || i[1].shape == [s[0], s[1]]),
      "selected_history: mask \(s), width \(width)")
    return (1..<width).map { _ in TensorSpec(s, .int32) }
      + [TensorSpec([s[0], s[2], width - 1], .int32)]
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[0].shape
    let (tokens, lanes) = (s[1], s[2])
    for b in 0..<s[0] {
      for m in 0..<lanes {
        let zero = (b * lanes + m) * (width + tokens)
        var history = (1..<width).map { zero + $0 }
        for t in 0..<tokens {
          if hasReset, a.inputs[1][b * tokens + t] != 0 {
            history = history.map { _ in zero }
          }
          let i = (b * tokens + t) * lanes + m
          let isTaken = a.inputs[0][i] != 0
          for j in 0..<width - 1 { a.outputs[j][i] = Double(isTaken ? history[j] : zero) }
          if isTaken { history = history.dropFirst() + [zero + width + t] }
        }
        for j in 0..<width - 1 {
          a.outputs[width - 1][(b * lanes + m) * (width - 1) + j] = Double(history[j])
        }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public var saved: SavedValues { .none }
  public static let cases: [OpCase] = {
    let mask = (0..<2 * 9 * 3).map { Double($0 * 7 % 5 < 2 ? 1 : 0) }
    var reset = [Double](repeating: 0, count: 18)
    reset[4] = 1
    reset[9] = 1
    var resets = TestInput([2, 9], .elements(reset), differentiable: false)
    resets.spec.dtype = .int32
    let input = TestInput([2, 9, 3], .elements(mask), differentiable: false)
    return [
      OpCase("width 4", SelectedHistory(width: 4, hasReset: false), [input]),
      OpCase("width 20", SelectedHistory(width: 20, hasReset: true), [input, resets]),
      OpCase("reset", SelectedHistory(width: 3, hasReset: true), [input, resets]),
    ]
  }()
}
