import GyreCPU
import GyreConformance
import GyreRecurrence
import GyreTensors
import Testing

/// All tokens at once for cells whose units mix, and the choice between executions.
@Suite("Executions of dense cells") struct CellExecutionTests {
  private struct Run {
    var y: [Double]
    var finals: [[Double]]
    var gradients: [[Double]]
    var reports: [NewtonReport]
  }

  /// One call with random weights of gain `gain`, forward and backward.
  private func run(
    _ cell: CellScan.Cell, _ execution: CellExecution, gain: Float, tokens: Int = 200,
    heads: Int = 1, poison: Int? = nil, resets: Bool = false
  ) throws -> Run {
    let device = try CPUDevice(poisons: true)
    let (B, H, G) = (2, 24, cell.gateCount)
    func values(_ name: String, _ shape: Shape, _ scale: Float) -> Tensor {
      var numbers = CounterGenerator(seed: 9, name: name).normals(shape.elementCount)
      if name == "gates", let poison { numbers[poison * G * H] = .nan }
      return Tensor(numbers.map { $0 * scale }, shape: shape, on: device)
    }
    let units = H / heads
    // Normal weights with the deviation of torch.nn's uniform ones.
    let scale = gain / (3 * Float(units)).squareRoot()
    let variables = [
      values("gates", [B, tokens, G * H], 1), values("R", [heads, G * units, units], scale),
      values("bias", [G * H], 0.3), values("h", [B, H], 0.3), values("c", [B, H], 0.3),
    ]
    let engine = CellScan(cell: cell, hiddenSize: H, heads: heads, execution: execution)
    let reset =
      resets
      ? Tensor(
        (0..<B * tokens).map { Int32($0 % 37 == 5 ? 1 : 0) }, shape: [B, tokens], on: device)
      : nil
    let reports = NewtonReports()
    let tape = Tape()
    tape.watch(variables)
    var finals: [Tensor] = []
    let y = NewtonReports.$current.withValue(reports) {
      tape.record {
        var state = State(engine.stateSpec, batch: B)
        state["h"] = variables[3]
        if cell.hasMemory { state["c"] = variables[4] }
        let y = engine(
          .init(gates: variables[0], recurrentWeight: variables[1], recurrentBias: variables[2]),
          state: &state, form: .parallel, reset: reset)
        finals = engine.stateSpec.entries.map { state.value($0.name, on: device) }
        return y
      }
    }
    let used = cell.hasMemory ? variables : Array(variables.dropLast())
    let gradients = tape.gradients(
      of: [(y, values("cotangent", y.shape, 1))], for: used)
    return Run(
      y: try y.doubles(), finals: try finals.map { try $0.doubles() },
      gradients: try gradients.map { try #require($0).doubles() }, reports: try reports.take())
  }

  /// At the gain of a fresh layer: the states and gradients of the fused kernels; few sweeps and no help
  /// for gated cells (Elman's has no gate that would stand for its Jacobian).
  @Test(arguments: [
    CellScan.Cell.elmanTanh, .elmanReLU, .gru, .gruOriginal, .lstm,
  ])
  func agreesWithTheFusedKernels(_ cell: CellScan.Cell) throws {
    for (heads, resets) in [(1, false), (3, true)] {
      let all = try run(cell, .newton, gain: 1, heads: heads, resets: resets)
      let one = try run(cell, .sequential, gain: 1, heads: heads, resets: resets)
      #expect(one.reports.isEmpty && all.reports.count == 1)
      let report = try #require(all.reports.first)
      #expect(report.fallback == 0 || cell.gateCount == 1, "\(cell) \(report)")
      #expect(report.iterations <= 16 && report.residual <= 1e-4, "\(cell) \(report)")
      #expect(Tolerance.error(all.y, one.y) < 5e-5, "\(cell)")
      for (a, b) in zip(all.finals, one.finals) { #expect(Tolerance.error(a, b) < 5e-5) }
      for (i, (a, b)) in zip(all.gradients, one.gradients).enumerated() {
        #expect(Tolerance.error(a, b) < 5e-4, "\(cell) gradient \(i)")
      }
    }
  }

  /// Weights with which sweeps do not converge: the sequential answer, and the report says so.
  @Test(arguments: [CellScan.Cell.elmanTanh, .gru, .lstm])
  func fallsBack(_ cell: CellScan.Cell) throws {
    var helped = 0.0
    for gain in [4, 16] as [Float] {
      let all = try run(cell, .newton, gain: gain, tokens: 120)
      helped += all.reports.reduce(0) { $0 + $1.fallback }
      // Chaotic networks amplify rounding, so the first tokens are what can be compared.
      let one = try run(cell, .sequential, gain: gain, tokens: 120)
      let part = 0..<(gain > 4 ? 10 * 24 : 40 * 24)
      #expect(
        Tolerance.error(Array(all.y[part]), Array(one.y[part])) < 1e-3, "\(cell) gain \(gain)")
    }
    #expect(helped > 0)
  }

  /// What is no number reaches the tokens after it in its row and nothing else.
  @Test(arguments: [CellScan.Cell.gru, .lstm]) func notANumber(_ cell: CellScan.Cell) throws {
    let all = try run(cell, .newton, gain: 1, tokens: 90, poison: 30)
    let one = try run(cell, .sequential, gain: 1, tokens: 90, poison: 30)
    #expect(all.y.contains { $0.isNaN })
    for (a, b) in zip(all.y, one.y) {
      #expect(a.isNaN == b.isNaN)
      if !a.isNaN { #expect(abs(a - b) < 1e-4) }
    }
    #expect(try #require(all.reports.first).fallback > 0)
  }

  @Test(arguments: [CellScan.Cell.gru, .lstm], [0, 1, 2])
  func shortSequences(_ cell: CellScan.Cell, _ tokens: Int) throws {
    let all = try run(cell, .newton, gain: 1, tokens: tokens)
    let one = try run(cell, .sequential, gain: 1, tokens: tokens)
    #expect(all.y.count == 2 * tokens * 24)
    #expect(Tolerance.error(all.y, one.y) < 5e-5)
    for (a, b) in zip(all.finals, one.finals) { #expect(Tolerance.error(a, b) < 5e-5) }
  }

  /// Diagonal cells at length 0 and 1.
  @Test(arguments: [0, 1]) func shortDiagonal(_ tokens: Int) throws {
    let device = try CPUDevice(poisons: true)
    for cell in [ParaGRU(), ParaLSTM(), ExponentialLSTM()] as [any Cell] {
      let description = cell.description(hidden: 5, matrix: .diagonal)
      let parts = description.parts
      let outputs = [CellExecution.newton, .sequential].map { execution in
        let engine = RecurrentCell(description, execution: execution)
        var state = State(engine.stateSpec, batch: 3)
        let y = engine(
          .init(
            gates: .full(0.3, [3, tokens, parts.inputWidth], on: device), matrices: [],
            parameters: parts.parameters.map { _ in .full(0.4, [5], on: device) }), state: &state,
          form: .parallel, reset: nil)
        return (y, state.value(parts.states[0].name, on: device))
      }
      #expect(outputs[0].0.shape == [3, tokens, 5])
      #expect(
        Tolerance.error(try outputs[0].0.doubles(), try outputs[1].0.doubles()) < 1e-5)
      #expect(
        Tolerance.error(try outputs[0].1.doubles(), try outputs[1].1.doubles()) < 1e-5)
    }
  }

  /// The nearest measured shape decides; other devices and structures do not.
  @Test func measuredTable() {
    func row(_ rows: Int, _ channels: Int, _ tokens: Int, _ ratio: Double) -> CellTimes.Row {
      .init(
        device: "cpu", structure: .scan1, rows: rows, channels: channels, tokens: tokens,
        sequentialSeconds: ratio, newtonSeconds: 1)
    }
    let times = CellTimes([row(1, 1, 512, 2), row(1, 64, 512, 0.5), row(1, 8, 64, 1.02)])
    func choice(_ channels: Int, _ tokens: Int, _ device: String = "cpu") -> Bool? {
      times.isNewtonFaster(
        .scan1, rows: 1, channels: channels, tokens: tokens, device: device)
    }
    #expect(choice(2, 600) == true && choice(100, 300) == false && choice(8, 32) == false)
    #expect(choice(2, 600, "cuda:0") == nil)
    #expect(times.isNewtonFaster(.dense, rows: 1, channels: 1, tokens: 512, device: "cpu") == nil)
    #expect(times.replacing("cpu", by: []).rows.isEmpty)
    #expect(times.replacing("cuda:0", by: [row(1, 1, 1, 1)]).rows.count == 4)
  }

  /// Noise inputs: zoneout 1 freezes the states, zoneout 0 and mask 1 change nothing.
  @Test func noiseInsideTheRecurrence() throws {
    let device = try CPUDevice(poisons: true)
    let (B, T, H) = (2, 15, 8)
    func values(_ name: String, _ shape: Shape) -> Tensor {
      Tensor(
        CounterGenerator(seed: 2, name: name).normals(shape.elementCount).map { $0 * 0.4 },
        shape: shape, on: device)
    }
    let inputs = CellScan.Inputs(
      gates: values("x", [B, T, 4 * H]), recurrentWeight: values("R", [4 * H, H]),
      recurrentBias: values("b", [4 * H]))
    let plain = CellScan(cell: .lstm, hiddenSize: H, execution: .sequential)
    let noisy = CellScan(
      cell: .lstm, hiddenSize: H, execution: .sequential,
      noise: CellNoise(zoneout: true, operands: true))
    #expect(noisy.noiseInputs.map(\.name) == ["operand.0", "zoneout.h", "zoneout.c"])
    func run(_ engine: CellScan, _ noise: [Double]) throws -> [Double] {
      var state = State(engine.stateSpec, batch: B)
      state["h"] = values("h", [B, H])
      let y = engine(
        inputs, noise: noise.map { .full($0, [B, T, H], on: device) }, state: &state,
        form: .parallel, reset: nil)
      return try y.doubles()
    }
    let expected = try run(plain, [])
    #expect(Tolerance.error(try run(noisy, [1, 0, 0]), expected) < 2e-6)
    let frozen = try run(noisy, [1, 1, 1])
    let h = try values("h", [B, H]).doubles()
    for b in 0..<B {
      for t in 0..<T {
        let now = Array(frozen[(b * T + t) * H..<(b * T + t + 1) * H])
        #expect(Tolerance.error(now, Array(h[b * H..<(b + 1) * H])) < 1e-6)
      }
    }
  }
}
