import GyreCPU
import GyreCheckpoints
import GyreLayers
import GyreModels
import GyreTensors
import GyreTokenizers
import Synchronization
import Testing

@testable import GyreTraining

/// A processor that takes whole training steps by itself: what is recorded is a list of calls that run
/// when it is replayed. What the host writes while work is recorded, it finds again.
private final class RecordingDevice: Device {
  private final class Record: RecordedWork {
    let calls: [KernelCall]
    let device: RecordingDevice
    init(_ calls: [KernelCall], _ device: RecordingDevice) {
      (self.calls, self.device) = (calls, device)
    }
    func replay() -> Bool {
      let isAllowed = device.counts.withLock { counts in
        counts.replays += 1
        return counts.refused == nil || counts.replays % (counts.refused ?? 1) != 0
      }
      guard isAllowed else { return false }
      for call in calls { device.cpu.launch(call) }
      return true
    }
  }
  private struct Counts {
    var replays = 0
    var records = 0
    /// Every so many replays one finds its memory taken.
    var refused: Int?
  }
  private enum Mode { case run, trace(WorkTrace), record([KernelCall], WorkTrace) }

  private let cpu: CPUDevice
  private let counts = Mutex(Counts())
  private let mode = Mutex(Mode.run)
  let reads = Atomic(0)

  init(refusingEvery refused: Int? = nil) throws {
    cpu = try CPUDevice()
    counts.withLock { $0.refused = refused }
  }

  var replays: Int { counts.withLock { $0.replays } }
  var records: Int { counts.withLock { $0.records } }

  var id: DeviceID { "recording" }
  func allocate(byteCount: Int) throws(DeviceError) -> any DeviceBuffer {
    try cpu.allocate(byteCount: byteCount)
  }
  func launch(_ call: KernelCall) {
    let runs = mode.withLock { mode in
      switch mode {
      case .run: return true
      case .trace(var trace):
        trace.add(call)
        mode = .trace(trace)
        return true
      case .record(var calls, var trace):
        calls.append(call)
        trace.add(call)
        mode = .record(calls, trace)
        return false
      }
    }
    if runs { cpu.launch(call) }
  }
  func synchronize() throws(DeviceError) { try cpu.synchronize() }
  func fail(_ error: DeviceError) { cpu.fail(error) }
  func hasKernel(for op: any Op) -> Bool { cpu.hasKernel(for: op) }
  func write(_ bytes: UnsafeRawBufferPointer, to buffer: any DeviceBuffer, offset: Int) {
    mode.withLock { mode in
      switch mode {
      case .run: break
      case .trace(var trace):
        trace.add(written: bytes)
        mode = .trace(trace)
      case .record(let calls, var trace):
        trace.add(written: bytes)
        mode = .record(calls, trace)
      }
    }
    cpu.write(bytes, to: buffer, offset: offset)
  }
  func read(
    _ buffer: any DeviceBuffer, offset: Int, into bytes: UnsafeMutableRawBufferPointer
  ) throws(DeviceError) {
    reads.add(1, ordering: .relaxed)
    try cpu.read(buffer, offset: offset, into: bytes)
  }
  var memory: MemoryReport { cpu.memory }
  func resetPeakMemory() { cpu.resetPeakMemory() }

  var repeatsWork: Bool { true }
  func trace(_ body: () -> Void) -> WorkTrace {
    mode.withLock { $0 = .trace(WorkTrace()) }
    body()
    return mode.withLock { mode in
      defer { mode = .run }
      if case .trace(let trace) = mode { return trace }
      return WorkTrace(obstacle: "lost")
    }
  }
  func record(
    repeating trace: WorkTrace, _ body: () -> Void
  ) throws(DeviceError) -> any RecordedWork {
    mode.withLock { $0 = .record([], WorkTrace()) }
    body()
    let (calls, found) = mode.withLock { mode in
      defer { mode = .run }
      if case .record(let calls, let trace) = mode { return (calls, trace) }
      return ([], WorkTrace(obstacle: "lost"))
    }
    if let reason = found.difference(from: trace) {
      throw .unavailable(device: id.name, reason: reason)
    }
    counts.withLock { $0.records += 1 }
    return Record(calls, self)
  }
}

/// Steps that the device decides on and repeats are those that the host decides on, bit for bit.
@Suite struct DeviceStepTests {
  private func makeTrainer(
    _ device: any Device, _ folder: RunFolder, _ training: TrainingConfiguration,
    _ configuration: ModelConfiguration = smallModel(), documents: Int = 2, creates: Bool = true
  ) throws -> Trainer {
    if creates {
      try folder.create(
        corpus: Corpus(
          train: documents == 1 ? [text(420)] : [text(300), text(120)], validation: [text(90)],
          source: "test"), tokenizer: ByteTokenizer(), model: configuration, training: training)
    }
    let model = try LanguageModel(
      configuration, source: RandomParameters(seed: 1, device: device), device: device)
    return try Trainer(model: model, configuration: training, folder: folder)
  }

  private func compare(
    _ training: TrainingConfiguration, _ configuration: ModelConfiguration = smallModel(),
    device: RecordingDevice? = nil
  ) throws -> (trainer: Trainer, device: RecordingDevice) {
    let (there, here) = (try TemporaryRun(), try TemporaryRun())
    let recording = try device ?? RecordingDevice()
    let own = try makeTrainer(recording, there.folder, training, configuration)
    let host = try makeTrainer(try CPUDevice(), here.folder, training, configuration)
    #expect(own.deviceWay != nil && host.deviceWay == nil)
    try own.run()
    try host.run()
    #expect(own.history.map(\.step) == Array(1...training.steps))
    #expect(own.history.map(\.trainBitsPerByte) == host.history.map(\.trainBitsPerByte))
    #expect(own.history.map(\.gradientNorm) == host.history.map(\.gradientNorm))
    #expect(own.history.map(\.learningRate) == host.history.map(\.learningRate))
    #expect(
      own.history.map(\.validationBitsPerByte) == host.history.map(\.validationBitsPerByte))
    #expect(try weights(own) == weights(host))
    return (own, recording)
  }

  @Test(arguments: [
    (TrainingConfiguration.OptimizerKind.adamw, TrainingConfiguration.Data.stream),
    (.sgd, .stream), (.muon, .packed), (.adamw, .packed),
  ])
  func recordedStepsAreTheHosts(
    kind: TrainingConfiguration.OptimizerKind, data: TrainingConfiguration.Data
  ) throws {
    let (trainer, device) = try compare(
      settings {
        $0.optimizer = kind
        $0.data = data
        $0.accumulation = 2
        $0.steps = 40
        $0.evaluateEvery = 15
      })
    #expect(trainer.deviceWay == .recorded && device.replays > 20 && device.records < 6)
  }

  @Test func dropoutMakesNewChoicesAtEachReplay() throws {
    var model = smallModel()
    (model.embeddingDropout, model.outputDropout) = (0.2, 0.3)
    let (trainer, _) = try compare(settings { $0.steps = 30 }, model)
    #expect(trainer.deviceWay == .recorded)
  }

  @Test func memoryInOtherHandsIsRecordedAgain() throws {
    let device = try RecordingDevice(refusingEvery: 5)
    _ = try compare(settings { $0.steps = 40 }, device: device)
    #expect(device.records > 3)
  }

  /// Positions of a sequence that goes on are numbers of the launch: nothing is recorded, and the host
  /// follows step by step. Where every row starts anew they repeat.
  @Test func positionsAreRecordedWhereTheyRepeat() throws {
    var model = smallModel()
    model.pattern = ["retnet", "min_gru"]
    model.mixers = ["retnet": .object(["heads": .integer(2)])]
    let (stream, device) = try compare(settings { $0.steps = 16 }, model)
    #expect(device.records == 0)
    #expect(stream.deviceWay == .ops("positions in the carried sequence"))
    let (packed, _) = try compare(settings { $0.data = .packed }, model)
    #expect(packed.deviceWay == .recorded)
    (model.pattern, model.mixers) = (["softmax_attention"], [:])
    let (attention, _) = try compare(settings { $0.steps = 16 }, model)
    #expect(attention.deviceWay == .ops("state that grows"))
  }

  /// Evaluations and checkpoints apart, outcomes are read when they are old, without waiting.
  @Test func resumedRunsGiveTheSameBits() throws {
    let training = settings { $0.steps = 30 }
    let (whole, parts) = (try TemporaryRun(), try TemporaryRun())
    let first = try makeTrainer(try RecordingDevice(), whole.folder, training, documents: 1)
    try first.run()
    let interrupted = try makeTrainer(
      try RecordingDevice(), parts.folder, training, documents: 1)
    var reports = 0
    try interrupted.run(shouldStop: { reports >= 13 }, report: { _ in reports += 1 })
    #expect(interrupted.step >= 13 && interrupted.step <= 13 + DeviceStep.lag)
    #expect(interrupted.history.count == interrupted.step)
    let second = try makeTrainer(
      try RecordingDevice(), parts.folder, training, documents: 1, creates: false)
    _ = try second.resume()
    try second.run()
    #expect(try weights(first) == weights(second))
    #expect(first.history.map(\.trainBitsPerByte) == second.history.map(\.trainBitsPerByte))
    #expect(Metrics.read(parts.folder.metrics).map(\.step) == Array(1...30))
  }

  @Test func lossThatIsNotANumberStopsTheRun() throws {
    let run = try TemporaryRun()
    let trainer = try makeTrainer(
      try RecordingDevice(), run.folder, settings { $0.maximumSkips = 3 })
    try expectStopAtNaN(trainer)
  }

  /// A spike leaves parameters, moments and the carried state alone, however late the host learns of it.
  @Test func spikesAreSkippedAsOnTheHost() throws {
    let training = settings {
      $0.steps = 40
      $0.spikeFactor = 1
      $0.maximumSkips = 100
      $0.learningRate = 1
    }
    let (trainer, _) = try compare(training)
    #expect(trainer.history.contains { $0.skipped != nil })
    #expect(trainer.history.contains { $0.skipped == nil })
  }
}
