import GyreCPU
import GyreCheckpoints
import GyreDistributed
import GyreLayers
import GyreTensors
import GyreTokenizers
import GyreTraining
import Synchronization
import Testing

@testable import GyreEvolution

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif
import class Foundation.Thread

@Suite("Workers")
struct WorkerTests {
  /// Runs `body` in as many threads as ranks, each with its group; what each gave or threw.
  /// - Parameter onCards: contents go through a communicator of tensors, as between cards.
  private func ranks<Value: Sendable>(
    _ count: Int, onCards: Bool = false,
    _ body: @escaping @Sendable (any WorkerGroup) throws -> Value
  ) async throws -> [Result<Value, any Error>] {
    try await withCheckedThrowingContinuation { done in
      // Ranks wait for each other, which tasks must not.
      Thread.detachNewThread {
        done.resume(
          with: Result {
            try RankGroup.outcomes(count: count) { group in
              try body(
                onCards
                  ? RankWorkers(
                    group, communicator: HostCommunicator(group, device: try CPUDevice()),
                    device: try CPUDevice()) : RankWorkers(group))
            }
          })
      }
    }
  }

  private func withFolder(_ body: (String) async throws -> Void) async throws {
    let path =
      FileManager.default.temporaryDirectory.path + "/workers-\(UInt64.random(in: 0 ... .max))"
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: path) }
    try await body(path)
  }

  @Test("ranks gather in order; one that ends is named to all others", arguments: [false, true])
  func gathers(onCards: Bool) async throws {
    let results = try await ranks(4, onCards: onCards) { group in
      let first = try group.gather([UInt8(group.rank), 7])
      #expect(first == (0..<4).map { [UInt8($0), 7] })
      if group.rank == 2 { return 0 }
      do {
        _ = try group.gather([1])
        Issue.record("rank 2 was not missed")
      } catch EvolutionError.worker(let lost, _) { #expect(lost == [2]) }
      #expect(group.ranks == [0, 1, 3])
      let slices = (group.slice(of: 10).count, group.rank)
      #expect(slices.0 == [0: 3, 1: 3, 3: 4][slices.1])
      return try group.gather([UInt8(group.rank)]).count
    }
    #expect(try results.map { try $0.get() } == [3, 3, 0, 3])
  }

  /// A rank that ends after some exchanges.
  private final class Mortal: WorkerGroup {
    private let group: any WorkerGroup
    private var left: Int
    init(_ group: any WorkerGroup, gathers: Int) {
      self.group = group
      left = gathers
    }
    var rank: Int { group.rank }
    var ranks: [Int] { group.ranks }
    func gather(_ bytes: [UInt8]) throws(EvolutionError) -> [[UInt8]] {
      guard left > 0 else { throw .worker(ranks: [0], reason: "is left") }
      left -= 1
      return try group.gather(bytes)
    }
  }

  private static func folder(_ path: String) throws -> RunFolder {
    let folder = RunFolder(path)
    let text = Array(String(repeating: "the cat sat on the mat. ", count: 60).utf8)
    try folder.createData(
      corpus: Corpus(train: [text], validation: [Array(text[..<200])], source: "cats"),
      tokenizer: ByteTokenizer())
    return folder
  }

  private static func egg(
    _ path: String, _ group: (any WorkerGroup)?, generations: Int = 6
  ) throws -> [Int8] {
    var c = EggConfiguration()
    (c.width, c.layers, c.population, c.streams) = (16, 1, 64, 8)
    (c.generations, c.evaluateEvery, c.checkpointEvery) = (generations, 3, 2)
    let trainer = try EggTrainer(
      model: EggModel(c.shape, seed: c.seed, device: try CPUDevice()), configuration: c,
      folder: RunFolder(path), group: group, onFailure: .drop)
    try trainer.run()
    return try trainer.model.weights.elements(Int8.self)
  }

  @Test("EGG: three ranks give the bits of one, also when one of them ends")
  func egg() async throws {
    try await withFolder { path in
      _ = try Self.folder(path + "/one")
      let alone = try Self.egg(path + "/one", nil)
      _ = try Self.folder(path + "/three")
      for result in try await ranks(3, { try Self.egg(path + "/three", $0) }) {
        #expect(try result.get() == alone)
      }
      _ = try Self.folder(path + "/lost")
      // Rank 1 leaves in the fourth generation: the others go back to the checkpoint of the second.
      let left = try await ranks(3) {
        try Self.egg(path + "/lost", $0.rank == 1 ? Mortal($0, gathers: 5) : $0)
      }
      #expect(throws: EvolutionError.self) { _ = try left[1].get() }
      #expect(try left[0].get() == alone)
      #expect(try left[2].get() == alone)
      let lines = EvolutionMetrics.read(path + "/lost/metrics.jsonl")
      #expect(lines.map(\.generation) == Array(1...6))
    }
  }

  private static func policy(
    _ path: String, _ group: (any WorkerGroup)?, generations: Int = 4,
    _ onFailure: WorkerFailure = .drop, update: UpdateWork = .auto
  ) throws -> [[Float]] {
    let device = try CPUDevice()
    var c = EvolutionConfiguration()
    (c.population, c.generations, c.rows, c.chunkRows) = (12, generations, 2, 8)
    (c.sigma, c.learningRate, c.reward) = (0.1, 0.1, "cartpole")
    (c.evaluateEvery, c.checkpointEvery) = (0, 100)
    let policy = try Policy(
      "gru", observations: 4, outputs: 2, width: 8,
      source: RandomParameters(seed: 1, device: device), device: device)
    let task = PolicyTask(
      policy: policy, environment: CartPole.self, configuration: c, device: device)
    let trainer = EvolutionTrainer(
      task: task, configuration: c, folder: RunFolder(path), device: device, group: group,
      onFailure: onFailure, update: update)
    try trainer.run()
    return try policy.parameters.map { try $0.value.floats() }
  }

  @Test("an update that is shared out has the bits of one process", arguments: [false, true])
  func sharedUpdates(onCards: Bool) async throws {
    try await withFolder { path in
      for name in ["one", "2", "3", "lost"] {
        try FileManager.default.createDirectory(
          atPath: path + "/" + name, withIntermediateDirectories: true)
      }
      let alone = try Self.policy(path + "/one", nil)
      for count in [2, 3] {
        let results = try await ranks(count, onCards: onCards) {
          try Self.policy(path + "/\(count)", $0, update: .shared)
        }
        for result in results { #expect(try result.get() == alone) }
      }
      // Rank 2 scores the second generation and leaves before its part of the update.
      let left = try await ranks(3) {
        try Self.policy(
          path + "/lost", $0.rank == 2 ? Mortal($0, gathers: 3) : $0, update: .shared)
      }
      #expect(try left[0].get() == alone)
      #expect(try left[1].get() == alone)
    }
  }

  @Test(
    "parameters are shared out evenly; sharing is tried where it promises less time, and kept if it gave it"
  )
  func sharing() throws {
    let device = try CPUDevice()
    let parameters = [[4, 4], [3], [2, 4], [7], [1], [8]].enumerated().map { i, shape in
      Parameter(name: "\(i)", value: .zeros(Shape(shape), on: device))
    }
    let shared = SharedEstimate([0, 1, 2, 3, 5], parameters, ranks: 3)
    #expect(shared.leaves == [[0], [2, 3], [5, 1]])
    #expect(shared.length == 16)

    func choices(_ work: UpdateWork, _ whole: Double, _ shared: Double, bytes: Int) -> [Bool] {
      var trial = UpdateTrial(work)
      return (0..<6).map { _ in
        let shares = trial.shares(ranks: 2, bytes: bytes, rate: 1e9)
        trial.took(shares ? shared : whole, shared: shares)
        return shares
      }
    }
    #expect(choices(.auto, 1, 0.6, bytes: 1) == [false, false, true, true, true, true])
    #expect(choices(.auto, 1, 1.1, bytes: 1) == [false, false, true, true, false, false])
    #expect(choices(.auto, 1, 0.6, bytes: 1 << 30) == [Bool](repeating: false, count: 6))
    #expect(choices(.whole, 1, 0.6, bytes: 1) == [Bool](repeating: false, count: 6))
    #expect(choices(.shared, 1, 2, bytes: 1) == [Bool](repeating: true, count: 6))
  }

  @Test("a policy: ranks give the bits of one; a lost one is dropped, or stops the run by name")
  func policies() async throws {
    try await withFolder { path in
      for name in ["one", "three", "lost", "stopped"] {
        try FileManager.default.createDirectory(
          atPath: path + "/" + name, withIntermediateDirectories: true)
      }
      let alone = try Self.policy(path + "/one", nil)
      for result in try await ranks(3, { try Self.policy(path + "/three", $0) }) {
        #expect(try result.get() == alone)
      }
      let left = try await ranks(3) {
        try Self.policy(path + "/lost", $0, generations: $0.rank == 2 ? 1 : 4)
      }
      #expect(try left[0].get() == alone)
      #expect(try left[1].get() == alone)
      let stopped = try await ranks(3) {
        try Self.policy(path + "/stopped", $0, generations: $0.rank == 2 ? 1 : 4, .stop)
      }
      #expect { try stopped[0].get() } throws: { "\($0)".contains("worker 2") }
      #expect { try stopped[1].get() } throws: { "\($0)".contains("worker 2") }
      let (checkpoint, _) = try RunFolder(path + "/stopped").store.latest()
      #expect(checkpoint?.step == 1)
    }
  }
}
