import ArgumentParser
import GyreInference
import GyreLayers
import GyreModels
import GyrePlatform
import GyreRecurrence
import GyreTensors

struct Bench: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract:
      "Measure engines, matrix products, training and decoding beside the machine's limits.",
    discussion: """
      Every row gives the median, its spread (half the distance between quartiles) and the floor: the
      larger of the bytes that must move over the bandwidth and the operations over the peak, both
      measured at the start with a large copy and a large matrix product.

        gyre bench
        gyre bench --only train --dtype bf16
        gyre bench --only delta_rule --json
        gyre bench --only decode --threads 1
        gyre bench --cells
        gyre bench --decode --device cuda:0 --dtype bf16 --only 1.3b
        gyre bench --evolution
        gyre bench --only "train lstm" --ops
        gyre bench --only length
        gyre bench --only layer
        gyre bench --only mixer
        gyre bench --learning --only delta
        gyre bench --device cuda:0 --dtype bf16 --profile gated-deltanet-350m --batch 4 --length 4096
        gyre bench --model-file model.Q4_K_M.gguf --threads 2

      Training rows are whole steps (forward, cross-entropy, backward, clipping,
      AdamW) with vocabulary 256, width 256, 4 layers, batch 16, length 256. Length
      rows compare 8 sequences of 16,384 tokens with 128 of 1,024, as many tokens a
      step, and with 8. Layer rows are recurrent layers with their input projection,
      batch 16, 512 tokens, width 256 and 1024. Mixer rows are every mixer and feed-
      forward block with its default options, width 256, batch 4, 256 tokens.
      Decoding rows feed one sequence a token at a time. --profile trains presets
      instead (several, separated by commas): tokens/s beside the device's matrix
      rate, memory, and on a GPU the time of each kernel.
      """)

  @OptionGroup var device: DeviceOptions
  @Option(
    help:
      "Only rows whose group (engine, length, layer, mixer, gemm, train, decode) or name contains this."
  )
  var only: String?
  @Option(help: "Precision of matrix products: f32 or bf16.") var dtype = Precision.f32
  @Flag(
    help:
      "Only recurrent cells: token by token against all tokens at once; the table becomes what automatic execution reads."
  )
  var cells = false
  @Flag(help: "Only decoding of the presets from 100m on (or --only), at batch 1 and 256.")
  var decode = false
  @Option(help: "With --decode: also so many tokens in one run, and the memory before and after.")
  var longTokens = 0
  @Flag(help: "Only evolution: EGG, and perturbed inference beside plain inference.")
  var evolution = false
  @Flag(
    help:
      "Only learning: a short training run of every mixer on the built-in text beside n-gram models, four times longer for those above the 2-gram."
  )
  var learning = false
  @Flag(
    help:
      "After each training row, where its time goes, op by op; with --evolution the kernels of a pass on a card."
  )
  var ops = false
  @Option(help: "Only whole training steps of these presets, kernel by kernel.")
  var profile: String?
  @Option(
    help:
      "With --profile and --decode: rows of a batch, several separated by commas; 4, and 1 and 256."
  )
  var batch: String?
  @Option(help: "With --profile: tokens of a row.") var length = 4096
  @Option(help: "With --profile: steps to measure.") var steps = 10
  @Option(help: "With --profile: kernels to list.") var kernels = 30
  @Option(help: "A stored model: how fast it reads a prompt and writes after it, nothing else.")
  var modelFile: String?
  @Option(help: "With --model-file: tokens of the prompt.") var prompt = 512
  @Option(help: "With --model-file: tokens to write.") var tokens = 128
  @Flag(help: "With --model-file: weights as float32 instead of as they are stored.")
  var widen = false
  @Flag(help: "One JSON object on standard output.") var json = false

  func validate() throws {
    if prompt < 1 || tokens < 1 {
      throw ValidationError("--prompt and --tokens must be positive")
    }
  }

  private struct Report: Encodable {
    var device: String
    var dtype: Precision
    var bandwidthBytesPerS, peakFlops: Double
    var rows: [Measurement]
  }

  func run() throws {
    let device = try device.open()
    if cells { return try measureCells(device) }
    if evolution { return try measureEvolution(device) }
    if decode { return try measureDecoding(device) }
    if learning { return try measureLearning(device) }
    if let modelFile { return try measure(modelFile, device) }
    try ComputePrecision.$current.withValue(dtype.compute) {
      if let profile { try measureSteps(profile, device) } else { try measure(device) }
    }
  }

  private func batches() throws -> [Int]? {
    guard let batch else { return nil }
    let found = batch.split(separator: ",", omittingEmptySubsequences: false).map { Int($0) ?? 0 }
    guard found.allSatisfy({ (1...1 << 20).contains($0) }) else {
      throw Failure("--batch must be positive numbers separated by commas, is '\(batch)'")
    }
    return found
  }

  private func measureSteps(_ presets: String, _ device: any Device) throws {
    let batches = try batches() ?? [4]
    guard (1...1 << 24).contains(length), (1...100_000).contains(steps) else {
      throw Failure("--length and --steps must be positive")
    }
    let product = try TrainingProfile.productRate(on: device)
    var rows: [TrainingProfile] = []
    for name in presets.split(separator: ",") {
      let model = try TrainingProfile.model(String(name), on: device)
      for batch in batches {
        let row = try TrainingProfile(
          String(name), model, batch: batch, length: length, steps: steps, product: product)
        if !json { row.print(limit: kernels) }
        rows.append(row)
      }
    }
    if json { try JSONOutput.document(rows) }
  }

  private func measure(_ path: String, _ device: any Device) throws {
    let row = try ComputePrecision.$current.withValue(dtype.compute) {
      try StoredModelRow(
        path, on: device, widens: widen, prompt: prompt, tokens: tokens, ops: ops)
    }
    if json { try JSONOutput.document(row) } else { row.print() }
  }

  private func measureCells(_ device: any Device) throws {
    let rows = try CellRows(on: device) {
      if Terminal.isErrorInteractive { Terminal.writeError("\r\u{1B}[2K\($0)") }
    }
    if Terminal.isErrorInteractive { Terminal.writeError("\r\u{1B}[2K") }
    let path = try CellTimesFile.replace(device.id.name, by: rows.rows.map(\.times))
    if json {
      try JSONOutput.document(rows)
    } else {
      rows.print()
      Terminal.line("\(path): what the execution \"automatic\" of cells chooses by from now on")
    }
  }

  private func measureDecoding(_ device: any Device) throws {
    let batches = try batches() ?? DecodeRows.batches
    let rows = try ComputePrecision.$current.withValue(dtype.compute) {
      let machine = try MachinePeaks(on: device)
      if !json {
        Terminal.line(
          "\(Devices.detail(of: device)), \(dtype.rawValue): \(Format.count(machine.bandwidth, "B/s")), "
            + "\(Format.count(machine.flops, "FLOP/s"))")
      }
      return try DecodeRows(
        on: device, machine, only: only, batches: batches, longTokens: longTokens
      ) {
        if Terminal.isErrorInteractive { Terminal.writeError("\r\u{1B}[2K\($0)") }
      }
    }
    if Terminal.isErrorInteractive { Terminal.writeError("\r\u{1B}[2K") }
    if json { try JSONOutput.document(rows) } else { rows.print() }
  }

  private func measureEvolution(_ device: any Device) throws {
    let rows = try EvolutionRows(
      on: device, ops: ops, wants: { only.map($0.contains) ?? true }
    ) {
      if Terminal.isErrorInteractive { Terminal.writeError("\r\u{1B}[2K\($0)") }
    }
    if Terminal.isErrorInteractive { Terminal.writeError("\r\u{1B}[2K") }
    if json { try JSONOutput.document(rows) } else { rows.print() }
  }

  private func measure(_ device: any Device) throws {
    let machine = try MachinePeaks(on: device)
    var rows: [Measurement] = []
    for (group, jobs) in [
      ("engine", engines(device, machine)), ("length", lengths(device, machine)),
      ("layer", layers(device, machine)), ("mixer", mixers(device, machine)),
      ("gemm", products(device, machine)),
      ("train", training(device, machine)), ("decode", decoding(device, machine)),
    ] {
      for (name, job) in jobs where wants(group, name) {
        if Terminal.isErrorInteractive { Terminal.writeError("\r\u{1B}[2K\(group) \(name)") }
        rows += try job()
      }
    }
    if Terminal.isErrorInteractive { Terminal.writeError("\r\u{1B}[2K") }
    if rows.isEmpty { throw Failure("no row's group or name contains '\(only ?? "")'") }
    if json {
      try JSONOutput.document(
        Report(
          device: Devices.detail(of: device), dtype: dtype, bandwidthBytesPerS: machine.bandwidth,
          peakFlops: machine.flops, rows: rows))
    } else {
      print(rows, machine, device)
    }
  }

  private func wants(_ group: String, _ name: String) -> Bool {
    guard let only else { return true }
    return group == only || "\(group) \(name)".contains(only)
  }

  private func print(_ rows: [Measurement], _ machine: MachinePeaks, _ device: any Device) {
    Terminal.line(
      "\(Devices.detail(of: device)), \(dtype.rawValue): \(Format.count(machine.bandwidth, "B/s")), "
        + "\(Format.count(machine.flops, "FLOP/s"))")
    var table = Table([
      ("", .left), ("pass", .left), ("median", .right), ("spread", .right), ("floor", .right),
      ("of floor", .right), ("tokens/s", .right),
    ])
    for row in rows {
      table.add([
        row.name, row.pass, Format.time(row.medianSeconds),
        "±\(Format.fixed(row.spread * 100, 1)) %",
        Format.time(row.floorSeconds),
        "\(Format.fixed(row.floorSeconds / row.medianSeconds * 100, 0)) %",
        row.tokensPerS.map { Format.grouped(Int($0)) } ?? "",
      ])
    }
    table.print()
    LengthComparison.table(rows)?.print()
  }

  typealias Job = (String, () throws -> [Measurement])

  private func engines(_ device: any Device, _ machine: MachinePeaks) -> [Job] {
    EngineRow.all(on: device).map { ($0.name, engine($0, device, machine)) }
  }

  /// Engines whose cost is linear in the length, with short sequences and with long ones.
  private func lengths(_ device: any Device, _ machine: MachinePeaks) -> [Job] {
    let names = EngineRow.all(on: device, batch: 1, length: 1).map(\.name)
    return names.enumerated().filter { $0.element != "softmax_attention" }.map { index, name in
      (
        name,
        {
          try LengthComparison.shapes.flatMap { batch, length in
            var row = EngineRow.all(on: device, batch: batch, length: length)[index]
            row.name = LengthComparison.name(row.name, batch, length)
            return try engine(row, device, machine)()
          }
        }
      )
    }
  }

  private func engine(
    _ row: EngineRow, _ device: any Device, _ machine: MachinePeaks
  ) -> () throws -> [Measurement] {
    {
      let (inputs, tokens) = (row.inputs(), row.tokens)
      let output = row.run(inputs)
      let (read, written) = (inputs.reduce(0) { $0 + $1.byteCount }, output.byteCount)
      let cotangent = Tensor.full(1, output.shape, on: device)
      return [
        try Measurement(
          row.name, "forward", bytes: Double(read + written), flops: row.flops, tokens: tokens,
          on: device, machine: machine
        ) { _ = row.run(inputs) },
        try Measurement(
          row.name, "forward+backward", bytes: Double(3 * read + 2 * written),
          flops: 3 * row.flops,
          tokens: tokens, on: device, machine: machine
        ) {
          let tape = Tape()
          tape.watch(inputs)
          let y = tape.record { row.run(inputs) }
          _ = tape.gradients(of: [(y, cotangent)], for: inputs)
        },
      ]
    }
  }

  private func layers(_ device: any Device, _ machine: MachinePeaks) -> [Job] {
    LayerRow.all(on: device).map { name, make in
      (
        name,
        {
          let row = make()
          let y = row.run(row.variables)
          let cotangent = Tensor.full(1, y.shape, on: device)
          let bytes = row.variables.reduce(y.byteCount) { $0 + $1.byteCount }
          return [
            try Measurement(
              name, "forward+backward", bytes: Double(3 * bytes), flops: 3 * row.flops,
              tokens: LayerRow.batch * LayerRow.length, on: device, machine: machine
            ) {
              let tape = Tape()
              tape.watch(row.variables)
              let y = tape.record { row.run(row.variables) }
              _ = tape.gradients(of: [(y, cotangent)], for: row.variables)
            }
          ]
        }
      )
    }
  }

  private func mixers(_ device: any Device, _ machine: MachinePeaks) -> [Job] {
    MixerRow.kinds.map { kind in
      (
        kind,
        {
          let row = try MixerRow.make(kind, on: device)
          let bytes = row.variables.reduce(0) { $0 + $1.byteCount } + 2 * row.x.byteCount
          let cotangent = Tensor.full(1, row.x.shape, on: device)
          return [
            try Measurement(
              kind, "forward+backward", bytes: Double(3 * bytes), flops: 3 * row.flops,
              tokens: MixerRow.batch * MixerRow.length, on: device, machine: machine
            ) {
              let tape = Tape()
              tape.watch(row.variables + [row.x])
              let y = tape.record { row.run(row.x) }
              _ = tape.gradients(of: [(y, cotangent)], for: row.variables + [row.x])
            }
          ]
        }
      )
    }
  }

  private func measureLearning(_ device: any Device) throws {
    let rows = try ComputePrecision.$current.withValue(dtype.compute) {
      try LearningRows(on: device, wants: { only.map($0.contains) ?? true }) {
        if Terminal.isErrorInteractive { Terminal.writeError("\r\u{1B}[2K\($0)") }
      }
    }
    if Terminal.isErrorInteractive { Terminal.writeError("\r\u{1B}[2K") }
    if json { try JSONOutput.document(rows) } else { rows.print() }
  }

  private func products(_ device: any Device, _ machine: MachinePeaks) -> [Job] {
    let rows = ModelRows.batch * ModelRows.length
    return [
      (rows, 512, 256, false, true), (rows, 1024, 256, false, true), (rows, 256, 512, false, true),
      (rows, 256, 512, false, false), (512, 256, rows, true, false),
      (1024, 1024, 1024, false, true),
    ].map { (m, n, k, left, right) in
      let name = "\(m)×\(n)×\(k) \(left ? "t" : "n")\(right ? "t" : "n")"
      return (
        name,
        {
          let a = Tensor.full(0.5, left ? [k, m] : [m, k], on: device)
          let b = Tensor.full(0.25, right ? [n, k] : [k, n], on: device)
          let precision = ComputePrecision.current
          return [
            try Measurement(
              name, "product", bytes: 4 * Double(m * k + k * n + m * n),
              flops: 2 * Double(m) * Double(n * k),
              on: device, machine: machine
            ) {
              _ = a.matmul(b, transposingLeft: left, transposingRight: right, precision: precision)
            }
          ]
        }
      )
    }
  }

  private func model(_ name: String, _ device: any Device) throws -> LanguageModel {
    try LanguageModel(
      try ModelRows.configuration(name), source: RandomParameters(seed: 1, device: device),
      device: device)
  }

  private func training(_ device: any Device, _ machine: MachinePeaks) -> [Job] {
    let (batch, length) = (ModelRows.batch, ModelRows.length)
    return ModelRows.names.map { name in
      (
        name,
        {
          var step = TrainingStep(try model(name, device))
          let ids = (0..<UInt64(batch * length)).map {
            Int32(CounterGenerator(seed: 1).integer($0, below: 256))
          }
          let tokens = Tensor(ids, shape: [batch, length], on: device)
          let matrices = step.model.parameters.filter {
            $0.shape.rank == 2 && $0.name != "embedding.weight"
          }
          let weights = Double(matrices.reduce(0) { $0 + $1.shape.elementCount })
          let count = Double(step.model.parameterCount)
          defer { if ops { printOps(device) { step.run(tokens, targets: tokens) } } }
          return [
            // Three products a matrix; AdamW reads four and writes three values a parameter.
            try Measurement(
              name, "training step", bytes: 28 * count, flops: 6 * weights * Double(batch * length),
              tokens: batch * length, on: device, machine: machine, minimumSeconds: 3
            ) { step.run(tokens, targets: tokens) }
          ]
        }
      )
    }
  }

  /// The ops of one training step by time, on devices that work at once.
  private func printOps(_ device: any Device, _ step: () -> Void) {
    guard let times = (device as? HostDevice)?.opTimes else { return }
    let repeats = 3
    times.clear()
    times.isOn = true
    for _ in 0..<repeats { step() }
    times.isOn = false
    times.report(repeats: repeats)
  }

  private func decoding(_ device: any Device, _ machine: MachinePeaks) -> [Job] {
    (ModelRows.names + Presets.names.filter { $0.hasSuffix("-100m") }).map { name in
      (
        name,
        {
          let model = try model(name, device)
          var state = model.makeState(batch: 1)
          // Attention decodes against a context of some length.
          let context = 512
          let prompt = [Int32](repeating: 65, count: context)
          _ = model.hidden(Tensor(prompt, shape: [1, context], on: device), state: &state)
          var decoder = Decoder(model, from: state, reading: [65])
          let parameters = 4 * model.parameterCount - 4 * 255 * model.configuration.width
          let moved = model.stateSpecs.reduce(0) { sum, spec in
            sum + spec.entries.reduce(0) { $0 + $1.decodeBytes(tokenCount: context) }
          }
          return [
            try Measurement(
              name, "decode", bytes: Double(parameters + moved),
              flops: 0.5 * Double(parameters), tokens: 1, on: device, machine: machine
            ) { try decoder.step() }
          ]
        }
      )
    }
  }
}

extension StateSpec.Entry {
  /// Bytes that one token of decoding must move: caches are read, other state is read and written.
  func decodeBytes(tokenCount: Int) -> Int {
    let spec = StateSpec([self])
    if case .cache = kind { return spec.byteCount(tokenCount: tokenCount) }
    return 2 * spec.byteCount(tokenCount: tokenCount)
  }
}

extension OpTimes {
  /// The ops that took longest, for each of `repeats` steps.
  func report(repeats: Int) {
    let entries = entries.sorted { $0.value.seconds > $1.value.seconds }
    let total = entries.reduce(0) { $0 + $1.value.seconds }
    var table = Table([("op", .left), ("launches", .right), ("a step", .right), ("", .right)])
    for (name, entry) in entries.prefix(24) {
      table.add([
        name, "\(entry.launches / repeats)", Format.time(entry.seconds / Double(repeats)),
        "\(Format.fixed(entry.seconds / total * 100, 1)) %",
      ])
    }
    for line in table.lines() { Terminal.note(line) }
  }
}
