import GyreRecurrence
import GyreTensors

/// Recurrent layers with their input projection at batch 16, 512 tokens: what `torch.nn.LSTM` and a
/// loop over time are compared with (`Benchmarks/peers/cpu_cells.py`).
struct LayerRow {
  static let (batch, length) = (16, 512)
  static let widths = [256, 1024]

  var name: String
  var variables: [Tensor]
  /// Operations of the products, forward.
  var flops: Double
  var run: ([Tensor]) -> Tensor

  static func all(on device: any Device) -> [(name: String, make: () -> LayerRow)] {
    widths.flatMap { width in
      [
        ("gru", { fused(.gru, width, device) }), ("lstm", { fused(.lstm, width, device) }),
        ("min_gru", { minGRU(width, device) }),
        (ParaGRU.kind, { diagonal(ParaGRU(), width, device) }),
        (ParaLSTM.kind, { diagonal(ParaLSTM(), width, device) }),
      ].map { (name: "\($0.0) \(width)", make: $0.1) }
    }
  }

  private static func values(
    _ name: String, _ shape: Shape, _ bound: Double, _ device: any Device
  ) -> Tensor {
    let (low, high) = (Float(-bound), Float(bound))
    return Tensor(
      CounterGenerator(seed: 1, name: name).uniforms(shape.elementCount, low, high), shape: shape,
      on: device)
  }

  /// x, W and b of a layer with `gates` gates.
  private static func projection(_ gates: Int, _ width: Int, _ device: any Device) -> [Tensor] {
    let bound = 1 / Double(width).squareRoot()
    return [
      values("x", [batch, length, width], 1, device),
      values("W", [gates * width, width], bound, device),
      values("b", [gates * width], bound, device),
    ]
  }

  private static func work(_ products: Int, _ width: Int) -> Double {
    2 * Double(batch * length) * Double(products * width * width)
  }

  private static func fused(_ cell: CellScan.Cell, _ width: Int, _ device: any Device) -> LayerRow {
    let G = cell.gateCount
    let bound = 1 / Double(width).squareRoot()
    let engine = CellScan(cell: cell, hiddenSize: width)
    let recurrent = [
      values("R", [G * width, width], bound, device), values("c", [G * width], bound, device),
    ]
    return LayerRow(
      name: "\(cell.rawValue) \(width)", variables: projection(G, width, device) + recurrent,
      flops: work(2 * G, width)
    ) { v in
      var state = State(engine.stateSpec, batch: batch)
      return engine(
        .init(gates: v[0].linear(v[1], bias: v[2]), recurrentWeight: v[3], recurrentBias: v[4]),
        state: &state, form: .chunkwise, reset: nil)
    }
  }

  private static func minGRU(_ width: Int, _ device: any Device) -> LayerRow {
    let engine = MinGRUScan(channels: width)
    return LayerRow(
      name: "min_gru \(width)", variables: projection(2, width, device), flops: work(2, width)
    ) { v in
      var state = State(engine.stateSpec, batch: batch)
      let parts = v[0].linear(v[1], bias: v[2]).split([width, width])
      return engine(
        .init(gate: parts[0], candidate: parts[1]), state: &state, form: .chunkwise, reset: nil)
    }
  }

  private static func diagonal(_ cell: any Cell, _ width: Int, _ device: any Device) -> LayerRow {
    let description = cell.description(hidden: width, matrix: .diagonal)
    let (parts, engine) = (description.parts, RecurrentCell(description))
    let own = parts.parameters.map { values($0.name, [width], 0.5, device) }
    return LayerRow(
      name: "\(type(of: cell).kind) \(width)",
      variables: projection(parts.inputs.count, width, device) + own,
      flops: work(parts.inputs.count, width)
    ) { v in
      var state = State(engine.stateSpec, batch: batch)
      return engine(
        .init(gates: v[0].linear(v[1], bias: v[2]), matrices: [], parameters: Array(v[3...])),
        state: &state, form: .chunkwise, reset: nil)
    }
  }
}
