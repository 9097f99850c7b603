import GyreCPU
import GyreConformance
import GyreRecurrence
import GyreTensors
import Testing

@Suite("Described cells") struct CellTests {
  static let cases = ConformanceCatalog.all().filter {
    $0.name.contains("recurrent_cell") || $0.name.contains("cell_scan")
  }

  /// The op's examples: definition against finite differences in Double, kernels against it.
  @Test(arguments: ["reference"] + TestDevices.names.suffix(1) + ["cpu:generic"])
  func operations(_ name: String) throws {
    let report = ConformanceReport(of: try TestDevices.make(name), cases: Self.cases)
    for problem in report.results.flatMap(\.problems) { Issue.record("\(name): \(problem)") }
    #expect(report.results.count == Self.cases.count && Self.cases.count > 60)
  }

  /// Every law for every cell with every shape of recurrent matrix.
  @Test(
    arguments: CellCatalog.cells.map { $0.kind } + [
      "gru", "slstm", "para_gru_block", "para_lstm_block",
    ])
  func laws(_ kind: String) throws {
    let cases = ConformanceCatalog.all().filter { $0.name.hasPrefix("mixer \(kind) ") }
    #expect(cases.count >= 24)
    let report = ConformanceReport(of: try CPUDevice(poisons: true), cases: cases)
    for problem in report.results.flatMap(\.problems) { Issue.record("\(kind): \(problem)") }
  }

  /// Runs a cell with random weights of a scale; the reports of Newton's method.
  private func run(
    _ cell: any Cell, scale: Float, execution: CellExecution, tokens: Int = 700,
    poisoned: Bool = false
  ) throws -> (y: [Double], reports: [NewtonReport]) {
    let device = try CPUDevice(poisons: true)
    let description = cell.description(hidden: 20, matrix: .diagonal)
    let engine = RecurrentCell(description, execution: execution)
    func values(_ name: String, _ count: Int) -> [Float] {
      CounterGenerator(seed: 4, name: name).normals(count)
    }
    let parts = description.parts
    var gates = values("gates", 2 * tokens * parts.inputWidth)
    if poisoned { gates[gates.count / 3] = .nan }
    let reports = NewtonReports()
    let y = NewtonReports.$current.withValue(reports) {
      var state = State(engine.stateSpec, batch: 2)
      return engine(
        .init(
          gates: Tensor(gates, shape: [2, tokens, parts.inputWidth], on: device), matrices: [],
          parameters: parts.parameters.map {
            Tensor(values($0.name, 20).map { $0 * scale }, shape: [20], on: device)
          }), state: &state, form: .parallel, reset: nil)
    }
    return (try y.doubles(), try reports.take())
  }

  /// Contracting cells need few iterations and no help.
  @Test(arguments: [ParaGRU.kind, ParaLSTM.kind, MinimalGatedUnit.kind])
  func newtonConverges(_ kind: String) throws {
    let cell = try #require(CellCatalog.cells.first { $0.kind == kind }).init()
    let newton = try run(cell, scale: 0.3, execution: .newton)
    let report = try #require(newton.reports.first)
    #expect(newton.reports.count == 1)
    #expect(report.iterations <= 5 && report.iterations >= report.meanIterations)
    #expect(report.fallback == 0 && report.residual < 1e-3, "\(report)")
    let sequential = try run(cell, scale: 0.3, execution: .sequential)
    #expect(sequential.reports.isEmpty)
    #expect(Tolerance.error(newton.y, sequential.y) < 1e-5)
  }

  /// Weights with which Newton's method diverges give the sequential answer, and the report says so.
  @Test func newtonFallsBack() throws {
    var helped = 0.0
    for scale in [2, 6, 20] as [Float] {
      for cell in [ParaGRU(), ParaLSTM(), ExponentialLSTM(), IndependentOscillators()] as [any Cell]
      {
        let newton = try run(cell, scale: scale, execution: .newton)
        let sequential = try run(cell, scale: scale, execution: .sequential)
        #expect(Tolerance.error(newton.y, sequential.y) < 1e-4, "\(type(of: cell)) \(scale)")
        helped += newton.reports.reduce(0) { $0 + $1.fallback }
      }
    }
    #expect(helped > 0)
  }

  @Test func notANumberStaysWhereItIs() throws {
    let newton = try run(ParaGRU(), scale: 0.3, execution: .newton, poisoned: true)
    let sequential = try run(ParaGRU(), scale: 0.3, execution: .sequential, poisoned: true)
    #expect(newton.y.contains { $0.isNaN })
    for (a, b) in zip(newton.y, sequential.y) { #expect(a.isNaN == b.isNaN) }
    #expect(try #require(newton.reports.first).fallback > 0)
  }

  /// Described cells against the kernels of the same cells.
  @Test(arguments: [CellScan.Cell.elmanTanh, .elmanReLU, .gru, .gruOriginal, .slstm])
  func describedAndFused(_ kind: CellScan.Cell) throws {
    let device = try CPUDevice(poisons: true)
    var (elman, gated) = (Elman(), GatedRecurrentUnit())
    elman.activation = kind == .elmanReLU ? .relu : .tanh
    gated.resetsBefore = kind == .gruOriginal
    let cell: any Cell =
      switch kind {
      case .elmanTanh, .elmanReLU: elman
      case .gru, .gruOriginal: gated
      case .slstm, .lstm: ExponentialLSTM()
      }
    let (B, T, H, G) = (2, 40, 12, kind.gateCount)
    func values(_ name: String, _ shape: Shape, _ scale: Float) -> Tensor {
      let numbers = CounterGenerator(seed: 4, name: name).normals(shape.elementCount)
      return Tensor(numbers.map { $0 * scale }, shape: shape, on: device)
    }
    let gates = values("gates", [B, T, G * H], 1)
    let R = values("R", [G * H, H], 0.3)
    let fused = CellScan(cell: kind, hiddenSize: H)
    let described = RecurrentCell(cell.description(hidden: H))
    var (s, r) = (State(fused.stateSpec, batch: B), State(described.stateSpec, batch: B))
    let a = fused(
      .init(gates: gates, recurrentWeight: R), state: &s, form: .recurrent, reset: nil)
    let parts = described.plan.parts
    let b = described(
      .init(
        gates: gates,
        matrices: R.split([Int](repeating: H, count: G), axis: 0).map { $0.reshaped([1, H, H]) },
        parameters: parts.parameters.map { _ in .zeros([H], on: device) }), state: &r,
      form: .recurrent, reset: nil)
    #expect(Tolerance.error(try a.doubles(), try b.doubles()) < 5e-6)
  }

  /// Real-time recurrent learning gives what backpropagation through time gives.
  @Test(arguments: [ElementwiseLSTM.kind, ParaLSTM.kind, LSTMFamily.kind, ParaGRU.kind])
  func onlineIsExact(_ kind: String) throws {
    let cell = try #require(CellCatalog.cells.first { $0.kind == kind }).init()
    let (H, D, T) = (5, 3, 40)
    let description = cell.description(hidden: H, matrix: .diagonal)
    let parts = description.parts
    func values(_ name: String, _ count: Int) -> [Double] {
      CounterGenerator(seed: 6, name: name).normals(count).map { 0.7 * Double($0) }
    }
    let (W, b) = (values("W", parts.inputWidth * D), values("b", parts.inputWidth))
    let parameters = parts.parameters.map { values($0.name, H) }
    let (x, c) = (values("x", T * D), values("c", T * H))

    var learner = OnlineLearner(
      description, inputs: D, inputWeight: W, inputBias: b, parameters: parameters)
    var sums = [[Double]](repeating: [], count: 2 + parameters.count)
    for t in 0..<T {
      _ = learner.step(Array(x[t * D..<(t + 1) * D]))
      let g = learner.gradients(Array(c[t * H..<(t + 1) * H]))
      for (i, part) in ([g.inputWeight, g.inputBias] + g.parameters).enumerated() {
        sums[i] = sums[i].isEmpty ? part : zip(sums[i], part).map { $0 + $1 }
      }
    }

    let device = ReferenceDevice()
    func tensor(_ values: [Double], _ shape: Shape) -> Tensor {
      Tensor(values.map(Float.init), shape: shape, on: device)
    }
    let variables =
      [tensor(W, [parts.inputWidth, D]), tensor(b, [parts.inputWidth])]
      + parameters.map { tensor($0, [H]) }
    let tape = Tape()
    tape.watch(variables)
    let engine = RecurrentCell(description, execution: .sequential)
    let y = tape.record {
      var state = State(engine.stateSpec, batch: 1)
      return engine(
        .init(
          gates: tensor(x, [1, T, D]).linear(variables[0], bias: variables[1]), matrices: [],
          parameters: Array(variables[2...])), state: &state, form: .recurrent, reset: nil)
    }
    let expected = tape.gradients(of: [(y, tensor(c, [1, T, H]))], for: variables)
    for (sum, g) in zip(sums, expected) {
      #expect(Tolerance.error(sum, try #require(g).doubles()) < 1e-5)
    }
  }
}
