import GyreCPU
import GyreCheckpoints
import GyreConformance
import GyreInference
import GyreRecurrence
import GyreTensors
import GyreTokenizers
import GyreTraining
import Testing

@testable import GyreEvolution

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

@Suite("EGG")
struct EggTests {
  private static let vectors = URL(fileURLWithPath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent()
    .appendingPathComponent("Fixtures/egg/egg_d64_l2.safetensors").path
  private static let levels = CPUDevice.Level.allCases.filter(\.isAvailable)

  @Test("every number of the published code's update, at every level", arguments: levels)
  func published(level: CPUDevice.Level) throws {
    let results = try VectorFiles.check(path: Self.vectors, device: try CPUDevice(level: level))
    #expect(results.count == 28)
    for result in results { #expect(result.isExact && result.worst == 0, "\(result)") }
  }

  @Test("a vector file with a number that no weight has is refused by name")
  func damagedVectors() throws {
    let file = try SafetensorsFile(path: Self.vectors)
    var writer = SafetensorsWriter(metadata: ["sigma_shift": "4", "threshold": "9"])
    for name in file.names where name != "noise.head" { try writer.add(name, from: file) }
    try withFolder { folder in
      let path = folder + "/short.safetensors"
      _ = try writer.write(to: path)
      #expect {
        try VectorFiles.check(path: path, device: try CPUDevice())
      } throws: { "\($0)".contains("noise.head") }
    }
  }

  @Test("thresholds of the published schedule")
  func thresholds() {
    var c = EggConfiguration()
    c.schedule = .published
    c.finalAlpha = 1e-3
    let found = [0, 5, 10, 50, 100, 250, 500, 999].map {
      EggConfiguration.threshold(alpha: c.alpha(at: $0))
    }
    #expect(found == [0, 1, 2, 9, 13, 20, 25, 29])
  }

  @Test("chunks of a population are the population")
  func chunks() throws {
    let device = try CPUDevice()
    let model = EggModel(EggShape(width: 16, layers: 1), seed: 3, device: device)
    let text = Tensor((0..<5 * 7).map { UInt8($0 * 7 % 251) }, shape: [5, 7], on: device)
    func fitness(_ members: Range<Int>) throws -> [Int32] {
      let rows = Array(
        try text.elements(UInt8.self)[members.lowerBound / 4 * 7..<members.upperBound / 4 * 7])
      let op = EggForward(
        model.shape,
        noise: EggNoise(
          .generated(seed: 9, epoch: 2, firstPair: UInt32(members.lowerBound / 2))), group: 4)
      return try apply(
        op,
        [
          model.weights, Tensor(rows, shape: [members.count / 4, 7], on: device),
          model.state(members: members.count),
        ])[0].elements(Int32.self)
    }
    #expect(try fitness(0..<20) == fitness(0..<8) + fitness(8..<20))
  }

  private func small() -> EggConfiguration {
    var c = EggConfiguration()
    (c.width, c.layers, c.population, c.streams) = (16, 1, 64, 8)
    (c.generations, c.evaluateEvery, c.checkpointEvery) = (6, 3, 2)
    return c
  }

  private func trainer(_ folder: RunFolder, _ c: EggConfiguration) throws -> EggTrainer {
    return try EggTrainer(
      model: EggModel(c.shape, seed: c.seed, device: try CPUDevice()), configuration: c,
      folder: folder)
  }

  private func makeFolder(_ path: String) throws -> RunFolder {
    let folder = RunFolder(path)
    let text = Array(String(repeating: "the cat sat on the mat. ", count: 60).utf8)
    try folder.createData(
      corpus: Corpus(train: [text], validation: [Array(text[..<200])], source: "cats"),
      tokenizer: ByteTokenizer())
    return folder
  }

  @Test("a resumed run gives the bits of one that was not interrupted")
  func resumes() throws {
    try withFolder { path in
      let c = small()
      let whole = try trainer(try makeFolder(path + "/whole"), c)
      try whole.run()
      let folder = try makeFolder(path + "/parts")
      var left = 4
      try trainer(folder, c).run(shouldStop: {
        left -= 1
        return left < 0
      })
      let rest = try trainer(folder, c)
      #expect(try rest.resume().isEmpty)
      #expect(rest.generation == 4)
      try rest.run()
      #expect(
        try rest.model.weights.elements(Int8.self) == whole.model.weights.elements(Int8.self))
      #expect(rest.history.map(\.meanFitness) == whole.history.map(\.meanFitness))
      #expect(rest.history.count == 6)
    }
  }

  @Test("evolution learns a small text")
  func learns() throws {
    try withFolder { path in
      var c = small()
      (c.population, c.generations, c.evaluateEvery) = (256, 60, 60)
      let trainer = try trainer(try makeFolder(path), c)
      let before = try trainer.evaluate()
      try trainer.run()
      let after = try trainer.evaluate()
      #expect(after < before - 1, "\(before) to \(after) bits a byte")
    }
  }

  @Test("a stored model scores and writes as before")
  func stored() throws {
    try withFolder { path in
      let device = try CPUDevice()
      let model = EggModel(EggShape(width: 20, layers: 2), seed: 5, device: device)
      _ = try AtomicFile.write(try model.configurationJSON(), to: path + "/config.json")
      _ = try model.writer().write(to: path + "/model.safetensors")
      let again = try #require(try EggModel.load(folder: path, device: device))
      #expect(try again.weights.elements(Int8.self) == model.weights.elements(Int8.self))
      let text = (0..<5000).map { UInt8($0 * 31 % 253 + 1) }
      let (bits, bytes) = try model.score(text)
      #expect(bytes == 4999)
      #expect(try again.score(text).bits == bits)
      var reader = EggReader(again)
      var whole = EggReader(model)
      _ = try reader.read([1, 2])
      #expect(try reader.read([3]) == whole.read([1, 2, 3]))
    }
  }

  private func withFolder(_ body: (String) throws -> Void) throws {
    let path = FileManager.default.temporaryDirectory.path + "/egg-\(UInt64.random(in: 0 ... .max))"
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: path) }
    try body(path)
  }
}
