import GyreCPU
import GyreLayers
import GyreModels
import GyreRecurrence
import GyreTensors
import Testing

@testable import GyreTraining

/// An LSTM and a GRU with every dropout there is.
private func droppingModel(_ rate: Double = 0.3) -> ModelConfiguration {
  var c = ModelConfiguration()
  c.width = 16
  c.layers = 3
  c.pattern = ["lstm", "gru", "mgu"]
  let dropout = JSONValue.object([
    "input": .number(rate), "variational": .number(rate), "recurrent": .number(rate),
    "weight": .number(rate), "zoneout": .number(rate / 3), "zoneoutMemory": .number(rate),
  ])
  for kind in c.pattern { c.mixers[kind] = .object(["dropout": dropout]) }
  c.embeddingDropout = rate
  c.outputDropout = rate
  c.activationPenalty = 2
  c.temporalPenalty = 1
  return c
}

@Suite struct DropoutTests {
  private let device: CPUDevice
  init() throws { device = try CPUDevice(poisons: true) }

  /// The mean of a mask is 1 and of choices the rate; each is a function of seed, step and name.
  @Test func masks() throws {
    let noise = DropoutNoise(seed: 3, step: 7)
    let shape: Shape = [100, 1000]
    let mask = try noise.mask(shape, rate: 0.4, name: "a", on: device).doubles()
    #expect(abs(mask.reduce(0, +) / 1e5 - 1) < 0.01)
    #expect(Set(mask).count == 2 && mask.contains(0))
    let choices = try noise.choices(shape, rate: 0.15, name: "a", on: device).doubles()
    #expect(abs(choices.reduce(0, +) / 1e5 - 0.15) < 0.005)
    func other(_ seed: UInt64, _ step: UInt64, _ name: String) throws -> [Double] {
      try DropoutNoise(seed: seed, step: step).mask(shape, rate: 0.4, name: name, on: device)
        .doubles()
    }
    #expect(try other(3, 7, "a") == mask)
    for different in [try other(4, 7, "a"), try other(3, 8, "a"), try other(3, 7, "b")] {
      let equal = zip(different, mask).reduce(0) { $0 + ($1.0 == $1.1 ? 1 : 0) }
      // Independent choices agree in 0.4² + 0.6² of the places.
      #expect(abs(Double(equal) / 1e5 - 0.52) < 0.01)
    }
  }

  /// The kernel, the definition and the generator agree in every element, at odd sizes and extreme rates.
  @Test(arguments: [0.0, 1e-9, 0.25, 0.5, 0.999]) func choicesAreTheGenerator(_ rate: Double) throws
  {
    let generator = CounterGenerator(seed: 1 << 40 + 3, name: "choice")
    for count in [1, 63, 65, 5003] {
      let expected = generator.uniforms(count).map { Double($0) < rate ? Float(2) : -1 }
      for device in [device as any Device, ReferenceDevice()] {
        let t = Tensor.choice(rate, 2, else: -1, [count], generator, on: device)
        #expect(try t.floats() == expected)
      }
    }
  }

  /// One choice for all tokens of a row.
  @Test func variationalDropoutSharesTime() throws {
    let x = Tensor.full(1, [3, 20, 50], on: device)
    let y = try x.dropped(0.5, DropoutNoise(seed: 1, step: 1), name: "v", sharesTime: true)
      .doubles()
    for row in 0..<3 {
      let first = y[row * 1000..<row * 1000 + 50]
      for t in 1..<20 {
        #expect(y[row * 1000 + t * 50..<row * 1000 + (t + 1) * 50].elementsEqual(first))
      }
    }
    #expect(y[..<50] != y[1000..<1050])
    #expect(try x.dropped(0.5, nil, name: "v").doubles() == x.doubles())
  }

  private func loss(
    _ c: ModelConfiguration, _ dropout: DropoutNoise?, tape: Bool = false
  ) throws -> [Double] {
    let model = try LanguageModel(
      c, source: RandomParameters(seed: 5, device: device), device: device)
    let ids = (0..<60).map { Int32($0 * 7 % 101) }
    let tokens = Tensor(ids, shape: [2, 30], on: device)
    var state = model.makeState(batch: 2)
    return try model.loss(tokens, targets: tokens, state: &state, dropout: dropout).rows.doubles()
  }

  /// Off in evaluation but for zoneout, which takes the mean there.
  @Test func offInEvaluation() throws {
    var still = droppingModel()
    for kind in still.pattern {
      still.mixers[kind] = .object([
        "dropout": .object([
          "input": .number(0.5), "weight": .number(0.5), "recurrent": .number(0.4),
        ])
      ])
    }
    var plain = droppingModel(0)
    plain.mixers = [:]
    for (a, b) in zip(try loss(still, nil), try loss(plain, nil)) { #expect(abs(a - b) < 1e-5) }
    let noise = DropoutNoise(seed: 1, step: 2)
    #expect(try loss(still, noise) != loss(plain, noise))
    #expect(try loss(droppingModel(), nil) == loss(droppingModel(), nil))
    #expect(try loss(droppingModel(), noise) == loss(droppingModel(), noise))
    #expect(
      try loss(droppingModel(), noise) != loss(droppingModel(), DropoutNoise(seed: 1, step: 3)))
  }

  /// The expectation over weight drop of a linear recurrence is the one with all weights.
  @Test func zoneoutMeanIsTheExpectation() throws {
    // One step from h = 1: E[m h + (1 − m) h̃] = p h + (1 − p) h̃ exactly.
    let (B, H, p) = (4000, 2, 0.3)
    let engine = CellScan(cell: .gru, hiddenSize: H, noise: CellNoise(zoneout: true))
    func run(_ zone: Tensor) throws -> [Double] {
      var state = State(engine.stateSpec, batch: B)
      state["h"] = .full(1, [B, H], on: device)
      return try engine(
        .init(
          gates: .full(-1, [B, 1, 3 * H], on: device),
          recurrentWeight: .full(0.1, [3 * H, H], on: device)), noise: [zone], state: &state,
        form: .parallel, reset: nil
      ).doubles()
    }
    let noise = DropoutNoise(seed: 1, step: 1)
    let sampled = try run(noise.choices([B, 1, H], rate: p, name: "z", on: device))
    let mean = try run(.full(p, [B, 1, H], on: device))
    #expect(abs(sampled.reduce(0, +) / Double(B * H) - mean[0]) < 0.02)
  }

  /// Dropped training goes on bit for bit, with the averages of NT-ASGD too.
  @Test(arguments: [TrainingConfiguration.OptimizerKind.adamw, .ntasgd])
  func resumingIsExact(_ kind: TrainingConfiguration.OptimizerKind) throws {
    let training = settings {
      $0.optimizer = kind
      $0.learningRate = kind == .ntasgd ? 1 : 0.01
      $0.accumulation = 2
      $0.evaluateEvery = 2
      $0.averagingPatience = 0
    }
    let (whole, parts) = (try TemporaryRun(), try TemporaryRun())
    let first = try makeTrainer(whole.folder, training, model: droppingModel())
    try first.run()
    var steps = 0
    let interrupted = try makeTrainer(parts.folder, training, model: droppingModel())
    try interrupted.run(shouldStop: { steps == 7 }, report: { _ in steps += 1 })
    let second = try makeTrainer(parts.folder, training, creates: false)
    _ = try second.resume()
    try second.run()
    #expect(try weights(first) == weights(second))
    #expect(
      first.history.map(\.validationBitsPerByte) == second.history.map(\.validationBitsPerByte))
  }

  @Test func ratesAreChecked() throws {
    for (kind, field) in [("lstm", "input"), ("gru", "zoneout"), ("mgu", "weight")] {
      for rate in [-0.1, 1, 1e300] {
        var c = droppingModel()
        c.mixers[kind] = .object(["dropout": .object([field: .number(rate)])])
        do throws(ConfigurationError) {
          try c.validate()
          Issue.record("\(kind).\(field) = \(rate)")
        } catch { #expect(error.path.hasSuffix("dropout.\(field)"), "\(error)") }
      }
    }
    var c = droppingModel()
    c.mixers["lstm"] = .object(["dropout": .object(["wrong": .number(0.1)])])
    #expect(throws: ConfigurationError.self) { try c.validate() }
    c = droppingModel()
    c.pattern = ["slstm"]
    c.mixers = ["slstm": .object(["dropout": .object(["zoneout": .number(0.1)])])]
    #expect(throws: ConfigurationError.self) { try c.validate() }
    c.pattern = ["para_gru"]
    c.mixers = ["para_gru": .object(["dropout": .object(["weight": .number(0.1)])])]
    #expect(throws: ConfigurationError.self) { try c.validate() }
  }
}

@Suite struct AveragingTests {
  /// Averaging starts when a score is worse than the best of those before the patience, and the average
  /// is the mean of the parameters since.
  @Test func averagesAreTheMean() throws {
    let device = try CPUDevice()
    var c = TrainingConfiguration()
    c.optimizer = .ntasgd
    c.learningRate = 1
    c.weightDecay = 0
    c.averagingPatience = 2
    let p = Parameter(name: "p", value: .full(0, [3], on: device))
    let optimizer = Optimizer([p], c)
    let one = Tensor.full(1, [1], on: device)
    func step() { optimizer.step([.full(-1, [3], on: device)], factor: one, schedule: 1) }
    for score in [3.0, 2, 2.5, 1.9, 2.1] {
      step()
      optimizer.observe(validation: score)
    }
    // 2.1 is worse than 2, the best of those before the last two.
    #expect(try p.value.doubles() == [5, 5, 5])
    #expect(try optimizer.withAverages { try p.value.doubles() } == [5, 5, 5])
    for _ in 0..<3 { step() }
    #expect(try optimizer.withAverages { try p.value.doubles() } == [7, 7, 7])
    #expect(try p.value.doubles() == [8, 8, 8])
  }
}

@Suite struct NeuralCacheTests {
  /// Against the formula in Double over the whole text, pieces or not.
  @Test(arguments: [5, 1000]) func isTheFormula(_ size: Int) throws {
    let device = try CPUDevice()
    let settings = try NeuralCache(size: size, theta: 0.7, lambda: 0.3)
    let (n, D) = (40, 6)
    let h = CounterGenerator(seed: 8).normals(n * D)
    let targets = (0..<n).map { Int32($0 * $0 % 5) }
    let nats = (0..<n).map { 0.5 + Double($0 % 7) }
    var pointer = CachePointer(settings)
    var mixed: [Double] = []
    for range in [0..<13, 13..<14, 14..<40] {
      mixed += try pointer.mix(
        Tensor(
          Array(h[range.lowerBound * D..<range.upperBound * D]), shape: [1, range.count, D],
          on: device),
        Array(targets[range]), nats: Array(nats[range]))
    }
    for t in 0..<n {
      var (sum, hits) = (0.0, 0.0)
      for j in max(0, t - size)..<t {
        let dot = (0..<D).reduce(0.0) { $0 + Double(h[t * D + $1]) * Double(h[j * D + $1]) }
        let weight = Functions.exp(0.7 * dot)
        sum += weight
        if targets[j] == targets[t] { hits += weight }
      }
      let model = Functions.exp(-nats[t])
      let p = t == 0 ? model : 0.7 * model + 0.3 * hits / sum
      #expect(abs(mixed[t] + Functions.log(p)) < 1e-4)
    }
  }

  @Test func settingsAreChecked() {
    #expect(throws: ConfigurationError.self) { try NeuralCache(size: 0, theta: 1, lambda: 0.1) }
    #expect(throws: ConfigurationError.self) { try NeuralCache(size: 1, theta: -1, lambda: 0.1) }
    #expect(throws: ConfigurationError.self) { try NeuralCache(size: 1, theta: 1, lambda: 1.5) }
    #expect(throws: ConfigurationError.self) { try NeuralCache(size: 1, theta: .nan, lambda: 0.5) }
  }
}
