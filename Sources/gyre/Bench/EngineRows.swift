import GyreRecurrence
import GyreTensors

/// Every engine with 4 heads of 64; at the training shape batch 16, 256 tokens.
struct EngineRow {
  var name: String
  /// Tokens of all rows.
  var tokens: Int
  /// Makes the inputs: at long lengths those of one engine at a time.
  var inputs: () -> [Tensor]
  /// Operations of the recurrence itself, forward.
  var flops: Double
  var run: ([Tensor]) -> Tensor

  static let (batch, length, heads, size) = (16, 256, 4, 64)

  static func all(
    on device: any Device, batch: Int = EngineRow.batch, length: Int = EngineRow.length
  ) -> [EngineRow] {
    Maker(device: device, b: batch, t: length).rows
  }

  private struct Maker {
    let device: any Device
    let b, t: Int
    var h: Int { EngineRow.heads }
    var k: Int { EngineRow.size }
    var d: Int { h * k }

    func tensor(_ name: String, _ shape: Shape, _ low: Float, _ high: Float) -> Tensor {
      let values = CounterGenerator(seed: 1, name: name).uniforms(shape.elementCount, low, high)
      return Tensor(values, shape: shape, on: device)
    }
    func value(_ name: String, _ shape: Shape) -> Tensor { tensor(name, shape, -1, 1) }
    func logDecay(_ shape: Shape) -> Tensor { tensor("decay", shape, -0.2, -0.001) }

    func row<E: RecurrenceEngine>(
      _ name: String, _ engine: E, _ inputs: @autoclosure @escaping () -> [Tensor], flops: Double,
      _ make: @escaping ([Tensor]) -> E.Inputs
    ) -> EngineRow {
      EngineRow(name: name, tokens: b * t, inputs: inputs, flops: flops * Double(b * t)) {
        tensors in
        var state = State(engine.stateSpec, batch: b)
        return engine(make(tensors), state: &state, form: .chunkwise, reset: nil)
      }
    }

    var rows: [EngineRow] { scans + linear + delta + cells + others }

    private var scans: [EngineRow] {
      let x: Shape = [b, t, d]
      let n = 16
      let state: Shape = [b, t, n]
      return [
        row("scan", DiagonalScan(channels: d), [logDecay(x), value("u", x)], flops: 2 * Double(d)) {
          .init(decay: $0[0], decayIsLog: true, input: $0[1])
        },
        row(
          "min_gru", MinGRUScan(channels: d), [value("z", x), value("h", x)], flops: 4 * Double(d)
        ) {
          .init(gate: $0[0], candidate: $0[1])
        },
        row(
          "selective_scan", SelectiveScan(channels: d, stateSize: n),
          [
            value("x", x), tensor("step", x, 0.001, 0.1), tensor("A", [d, n], -8, -1),
            value("B", state), value("C", state),
          ],
          flops: 6 * Double(d * n)
        ) { .init(x: $0[0], step: $0[1], A: $0[2], B: $0[3], C: $0[4]) },
      ]
    }

    private var qkv: [Tensor] { ["q", "k", "v"].map { value($0, [b, t, h, k]) } }

    private var linear: [EngineRow] {
      let engine = LinearAttention(heads: h, keySize: k, valueSize: k)
      let work = 4 * Double(h * k * k)
      return [
        row("linear_attention", engine, qkv, flops: work) {
          .init(q: $0[0], k: $0[1], v: $0[2], decay: .none)
        },
        row("linear_attention scalar decay", engine, qkv + [logDecay([b, t, h])], flops: work) {
          .init(q: $0[0], k: $0[1], v: $0[2], decay: .scalar($0[3]))
        },
        row("linear_attention vector decay", engine, qkv + [logDecay([b, t, h, k])], flops: work) {
          .init(q: $0[0], k: $0[1], v: $0[2], decay: .vector($0[3]))
        },
        row(
          "mlstm", MatrixLSTM(heads: h, keySize: k, valueSize: k),
          qkv + [value("i", [b, t, h]), tensor("f", [b, t, h], 1, 4)], flops: work
        ) { .init(q: $0[0], k: $0[1], v: $0[2], inputGate: $0[3], forgetGate: $0[4]) },
      ]
    }

    private var unitKeys: [Tensor] {
      [
        value("q", [b, t, h, k]), value("k", [b, t, h, k]).l2Normalized(),
        value("v", [b, t, h, k]),
      ]
    }
    private var beta: Tensor { tensor("beta", [b, t, h], 0, 1) }
    private var generalized: [Tensor] {
      let key = value("a", [b, t, h, k]).l2Normalized()
      return unitKeys + [
        logDecay([b, t, h, k]), key * -1, key * tensor("g", [b, t, h, k], 0, 1),
      ]
    }

    private var delta: [EngineRow] {
      let engine = DeltaRule(heads: h, keySize: k, valueSize: k)
      let work = 6 * Double(h * k * k)
      return [
        row("delta_rule", engine, unitKeys + [beta], flops: work) {
          .init(q: $0[0], k: $0[1], v: $0[2], beta: $0[3], gate: .none)
        },
        row(
          "delta_rule scalar gate", engine, unitKeys + [beta, logDecay([b, t, h])], flops: work
        ) {
          .init(q: $0[0], k: $0[1], v: $0[2], beta: $0[3], gate: .scalar($0[4]))
        },
        row(
          "delta_rule vector gate", engine, unitKeys + [beta, logDecay([b, t, h, k])], flops: work
        ) {
          .init(q: $0[0], k: $0[1], v: $0[2], beta: $0[3], gate: .vector($0[4]))
        },
        row(
          "delta_rule dplr", GeneralizedDeltaRule(heads: h, keySize: k, valueSize: k),
          generalized, flops: 8 * Double(h * k * k)
        ) { .init(q: $0[0], k: $0[1], v: $0[2], logDecay: $0[3], a: $0[4], b: $0[5]) },
      ]
    }

    private var cells: [EngineRow] {
      [CellScan.Cell.lstm, .gru].map { cell in
        let gates = cell.gateCount * d
        return row(
          "cell \(cell.rawValue)", CellScan(cell: cell, hiddenSize: d),
          [value("gates", [b, t, gates]), tensor("recurrent", [gates, d], -0.06, 0.06)],
          flops: 2 * Double(gates * d)
        ) { .init(gates: $0[0], recurrentWeight: $0[1]) }
      }
    }

    private var others: [EngineRow] {
      // Half of all pairs, once for the scores and once for the values.
      let pairs = Double(t + 1) / 2
      return [
        row(
          "softmax_attention", SoftmaxAttention(heads: h, keySize: k, valueSize: k), qkv,
          flops: 4 * pairs * Double(d)
        ) { .init(q: $0[0], k: $0[1], v: $0[2]) },
        EngineRow(
          name: "short_convolution", tokens: b * t,
          inputs: { [value("x", [b, t, d]), value("w", [d, 4])] }, flops: 8 * Double(d * b * t)
        ) { $0[0].shortConvolution($0[1], activation: true).y },
      ]
    }
  }
}
