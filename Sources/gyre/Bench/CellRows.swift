import GyreRecurrence
import GyreTensors

/// Token by token against Newton's method, for cells whose units do not mix: what the automatic choice
/// rests on.
struct CellRows: Encodable {
  struct Row: Encodable {
    var cell: String
    var rows, channels, tokens: Int
    /// Forward and backward together.
    var sequentialSeconds, newtonSeconds: Double
    var report: NewtonReport
    var automaticIsNewton: Bool
  }
  var rows: [Row] = []

  /// B × channels from one number to a training batch, at three lengths.
  static let shapes = [(1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (1, 64), (1, 256), (16, 256)]
  static let lengths = [64, 512, 4096]
  /// Of a graphics processor, which has more to fill.
  static let wideShapes = [(1, 64), (1, 256), (8, 128), (8, 256), (8, 512), (8, 1024), (8, 2048)]
  static let wideLengths = [512, 2048, 65_536]

  init(on device: any Device, progress: (String) -> Void) throws {
    for cell in [ParaGRU(), ParaLSTM(), ExponentialLSTM()] as [any Cell] {
      let isWide = device.id != "cpu"
      for (batch, channels) in isWide ? CellRows.wideShapes : CellRows.shapes {
        for tokens in isWide ? CellRows.wideLengths : CellRows.lengths
        where batch * channels * tokens <= 1 << (isWide ? 26 : 22) {
          progress("\(type(of: cell).kind) \(batch)×\(channels), \(tokens) tokens")
          rows.append(try CellRows.row(cell, batch, channels, tokens, device))
        }
      }
    }
  }

  private static func row(
    _ cell: any Cell, _ batch: Int, _ channels: Int, _ tokens: Int, _ device: any Device
  ) throws -> Row {
    let description = cell.description(hidden: channels, matrix: .diagonal)
    let parts = description.parts
    func values(_ name: String, _ shape: Shape, _ low: Float, _ high: Float) -> Tensor {
      let generator = CounterGenerator(seed: 1, name: name)
      return Tensor(generator.uniforms(shape.elementCount, low, high), shape: shape, on: device)
    }
    let gates = values("gates", [batch, tokens, parts.inputWidth], -2, 2)
    let parameters = parts.parameters.map { values($0.name, [channels], -0.5, 0.5) }
    let cotangent = Tensor.full(1, [batch, tokens, channels], on: device)

    func seconds(_ execution: CellExecution) throws -> Double {
      let engine = RecurrentCell(description, execution: execution)
      let times = try Measurement.times(on: device, 0.1) {
        let tape = Tape()
        tape.watch([gates] + parameters)
        let y = tape.record {
          var state = State(engine.stateSpec, batch: batch)
          return engine(
            .init(gates: gates, matrices: [], parameters: parameters), state: &state,
            form: .parallel, reset: nil)
        }
        _ = tape.gradients(of: [(y, cotangent)], for: [gates] + parameters)
      }
      return times[times.count / 2]
    }
    let reports = NewtonReports()
    let newton = try NewtonReports.$current.withValue(reports) { try seconds(.newton) }
    return Row(
      cell: type(of: cell).kind, rows: batch, channels: channels, tokens: tokens,
      sequentialSeconds: try seconds(.sequential), newtonSeconds: newton,
      report: try reports.take().last ?? NewtonReport(),
      automaticIsNewton: CellExecution.isNewtonFaster(
        rows: batch, channels: channels, states: parts.states.count, tokens: tokens, on: device))
  }

  func print() {
    var table = Table([
      ("cell", .left), ("rows × channels", .right), ("tokens", .right), ("sequential", .right),
      ("newton", .right), ("ratio", .right), ("iterations", .right), ("fallback", .right),
      ("automatic", .left),
    ])
    for row in rows {
      table.add([
        row.cell, "\(row.rows) × \(row.channels)", "\(row.tokens)",
        Format.time(row.sequentialSeconds), Format.time(row.newtonSeconds),
        Format.fixed(row.sequentialSeconds / row.newtonSeconds, 2),
        Format.fixed(row.report.meanIterations, 1),
        "\(Format.fixed(row.report.fallback * 100, 0)) %",
        row.automaticIsNewton ? "newton" : "sequential",
      ])
    }
    table.print()
  }
}
