import GyreRecurrence
import GyreTensors

/// Token by token against all tokens at once: what the automatic choice rests on.
struct CellRows: Encodable {
  struct Row: Encodable {
    var cell: String
    /// Shape, and the times of forward and backward together.
    var times: CellTimes.Row
    var report: NewtonReport
    var automaticIsNewton: Bool
  }
  var rows: [Row] = []

  /// B × channels from one number to a training batch, at three lengths.
  static let diagonal = [(1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (1, 64), (1, 256), (16, 256)]
  static let diagonalLengths = [64, 512, 4096]
  /// Of a graphics processor, which has more to fill.
  static let wideDiagonal = [
    (1, 64), (1, 256), (8, 128), (8, 256), (8, 512), (8, 1024), (8, 2048),
  ]
  static let wideLengths = [512, 2048, 65_536]
  static let dense = [(1, 64), (1, 256), (1, 1024), (4, 256), (16, 256)]
  static let denseLengths = [64, 512]

  private struct Job {
    var cell: String
    var structure: CellExecution.Structure
    var rows, channels, tokens: Int
    var engine: (CellExecution) -> CellRun
  }

  init(on device: any Device, progress: (String) -> Void) throws {
    for job in CellRows.jobs(device) {
      progress("\(job.cell) \(job.rows)×\(job.channels), \(job.tokens) tokens")
      rows.append(try CellRows.measure(job, device))
    }
  }

  private static func jobs(_ device: any Device) -> [Job] {
    var jobs: [Job] = []
    let isWide = device.storesBFloat16
    func add(
      _ cell: String, _ structure: CellExecution.Structure, _ shapes: [(Int, Int)],
      _ lengths: [Int], _ engine: @escaping (Int, Int, Int, CellExecution) -> CellRun
    ) {
      for (rows, channels) in shapes {
        for tokens in lengths where rows * channels * tokens <= 1 << (isWide ? 26 : 21) {
          jobs.append(
            Job(cell: cell, structure: structure, rows: rows, channels: channels, tokens: tokens) {
              engine(rows, channels, tokens, $0)
            })
        }
      }
    }
    for (cell, structure) in [
      (ParaGRU(), .scan1), (ParaLSTM(), .scan2), (ExponentialLSTM(), .scan3),
    ] as [(any Cell, CellExecution.Structure)] {
      add(
        type(of: cell).kind, structure, isWide ? wideDiagonal : diagonal,
        isWide ? wideLengths : diagonalLengths
      ) {
        .described(cell, .diagonal, rows: $0, channels: $1, tokens: $2, $3, device)
      }
    }
    add(GatedRecurrentUnit.kind, .dense, dense, denseLengths) {
      .described(GatedRecurrentUnit(), .dense, rows: $0, channels: $1, tokens: $2, $3, device)
    }
    for cell in [CellScan.Cell.gru, .lstm] {
      add(cell.rawValue, .fused, dense, denseLengths) {
        .fused(cell, rows: $0, channels: $1, tokens: $2, $3, device)
      }
    }
    return jobs
  }

  private static func measure(_ job: Job, _ device: any Device) throws -> Row {
    func seconds(_ execution: CellExecution) throws -> Double {
      let run = job.engine(execution)
      let times = try Measurement.times(on: device, 0.1) { run.forwardAndBackward() }
      return times[times.count / 2]
    }
    let reports = NewtonReports()
    let sequential = try seconds(.sequential)
    // Graphics processors have no sweeps over products: they run token by token, too.
    let hasNewton =
      !device.storesBFloat16 || (job.structure != .dense && job.structure != .fused)
    let newton =
      hasNewton
      ? try NewtonReports.$current.withValue(reports) { try seconds(.newton) } : sequential
    return Row(
      cell: job.cell,
      times: .init(
        device: device.id.name, structure: job.structure, rows: job.rows, channels: job.channels,
        tokens: job.tokens, sequentialSeconds: sequential, newtonSeconds: newton),
      report: try reports.take().last ?? NewtonReport(),
      automaticIsNewton: CellExecution.automatic.isNewton(
        job.structure, rows: job.rows, channels: job.channels, tokens: job.tokens, on: device))
  }

  func print() {
    var table = Table([
      ("cell", .left), ("rows × channels", .right), ("tokens", .right), ("sequential", .right),
      ("newton", .right), ("ratio", .right), ("iterations", .right), ("fallback", .right),
      ("automatic", .left),
    ])
    for row in rows {
      let t = row.times
      table.add([
        row.cell, "\(t.rows) × \(t.channels)", "\(t.tokens)", Format.time(t.sequentialSeconds),
        Format.time(t.newtonSeconds), Format.fixed(t.sequentialSeconds / t.newtonSeconds, 2),
        Format.fixed(row.report.meanIterations, 1),
        "\(Format.fixed(row.report.fallback * 100, 0)) %",
        row.automaticIsNewton ? "newton" : "sequential",
      ])
    }
    table.print()
  }
}

/// One engine with inputs of a shape.
struct CellRun {
  private let variables: [Tensor]
  private let cotangent: Tensor
  private let run: ([Tensor]) -> Tensor

  func forwardAndBackward() {
    let tape = Tape()
    tape.watch(variables)
    let y = tape.record { run(variables) }
    _ = tape.gradients(of: [(y, cotangent)], for: variables)
  }

  private static func values(
    _ name: String, _ shape: Shape, _ bound: Double, _ device: any Device
  ) -> Tensor {
    let generator = CounterGenerator(seed: 1, name: name)
    let (low, high) = (Float(-bound), Float(bound))
    return Tensor(generator.uniforms(shape.elementCount, low, high), shape: shape, on: device)
  }

  static func described(
    _ cell: any Cell, _ matrix: RecurrentMatrix, rows: Int, channels: Int, tokens: Int,
    _ execution: CellExecution, _ device: any Device
  ) -> CellRun {
    let description = cell.description(hidden: channels, matrix: matrix)
    let (parts, engine) = (
      description.parts, RecurrentCell(description, execution: execution)
    )
    let bound = 1 / Double(channels).squareRoot()
    let matrices = parts.matrices.map { values($0.name, parts.shape($0), bound, device) }
    let parameters = parts.parameters.map {
      values($0.name, [channels], matrix == .diagonal ? 0.5 : bound, device)
    }
    return CellRun(
      variables: [values("gates", [rows, tokens, parts.inputWidth], 2, device)] + matrices
        + parameters,
      cotangent: .full(1, [rows, tokens, channels], on: device)
    ) { v in
      var state = State(engine.stateSpec, batch: rows)
      return engine(
        .init(
          gates: v[0], matrices: Array(v[1..<1 + matrices.count]),
          parameters: Array(v[(1 + matrices.count)...])), state: &state, form: .parallel, reset: nil
      )
    }
  }

  static func fused(
    _ cell: CellScan.Cell, rows: Int, channels: Int, tokens: Int, _ execution: CellExecution,
    _ device: any Device
  ) -> CellRun {
    let engine = CellScan(cell: cell, hiddenSize: channels, execution: execution)
    let G = cell.gateCount
    let bound = 1 / Double(channels).squareRoot()
    return CellRun(
      variables: [
        values("gates", [rows, tokens, G * channels], 2, device),
        values("recurrent", [G * channels, channels], bound, device),
      ],
      cotangent: .full(1, [rows, tokens, channels], on: device)
    ) { v in
      var state = State(engine.stateSpec, batch: rows)
      return engine(
        .init(gates: v[0], recurrentWeight: v[1]), state: &state, form: .parallel, reset: nil)
    }
  }
}
