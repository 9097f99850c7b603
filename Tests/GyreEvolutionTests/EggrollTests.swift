import GyreCPU
import GyreLayers
import GyreModels
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

@Suite("EGGROLL")
struct EggrollTests {
  private static let sigma = 0.05

  private func model(_ kind: String = "min_gru") throws -> LanguageModel {
    var c = ModelConfiguration()
    (c.vocabulary, c.width, c.layers, c.pattern) = (256, 32, 2, [kind])
    if kind == "rwkv7" { c.mixers[kind] = .object(["headSize": .integer(16)]) }
    let device = try CPUDevice()
    return try LanguageModel(
      c, source: RandomParameters(seed: 4, device: device), device: device)
  }

  private func tokens(_ rows: Int, _ length: Int, on device: any Device) -> Tensor {
    // The same text in every row, so that rows differ by their members only.
    let text = (0..<length).map { Int32($0 * 37 % 251) }
    return Tensor(
      Array(repeatElement(text, count: rows).joined()), shape: [rows, length], on: device)
  }

  private func logits(
    _ model: LanguageModel, _ rows: Int, _ form: SequenceForm, _ perturbation: Perturbation?
  ) throws -> [Float] {
    try Perturbation.$current.withValue(perturbation) {
      var state = model.makeState(batch: rows)
      return try model.logits(
        model.hidden(tokens(rows, 9, on: model.device), state: &state, form: form)
      ).floats()
    }
  }

  /// A model whose used parameters are those of one member, written out.
  private func written(
    _ model: LanguageModel, _ strategy: Perturbation.Strategy, _ member: Int32, _ used: Set<Int>
  ) throws -> LanguageModel {
    let copy = try self.model(model.configuration.pattern[0])
    let device = model.device
    let noise = Perturbation.Noise(
      strategy, epoch: 3, members: Tensor([member], shape: [1], on: device))
    for (i, p) in copy.parameters.enumerated() where used.contains(i) {
      if p.shape.rank == 2, let r = strategy.rank {
        let (down, up) = noise.factors(i, p.shape, scale: strategy.matrixScale, signed: true)
        let change = up.reshaped([r, p.shape[0]]).matmul(
          down.reshaped([r, p.shape[1]]), transposingLeft: true)
        p.value = p.value + change
      } else {
        let z = noise.full(i, p.shape, scale: strategy.sigma, signed: true)
        p.value = p.value + z.reshaped(p.shape)
      }
    }
    return copy
  }

  @Test(
    "a perturbed forward pass is that of the perturbed weights, in every form",
    arguments: [1, 3, nil], ["min_gru", "gated_delta_net", "mamba2", "rwkv7"])
  func explicit(rank: Int?, kind: String) throws {
    let model = try model(kind)
    let strategy = Perturbation.Strategy(seed: 8, sigma: Self.sigma, rank: rank)
    let members: [Int32] = [0, 1, 6, -1]
    for form in [SequenceForm.recurrent, .chunkwise, .parallel] {
      let perturbation = Perturbation(
        strategy, epoch: 3, members: members, parameters: model.parameters, on: model.device)
      let together = try logits(model, members.count, form, perturbation)
      let size = together.count / members.count
      #expect(perturbation.used.count >= 6)
      for (row, member) in members.enumerated() {
        let alone =
          member < 0
          ? model : try written(model, strategy, member, perturbation.used)
        let expected = try logits(alone, 1, form, nil)
        let found = together[row * size..<(row + 1) * size]
        let largest = expected.map(abs).max() ?? 1
        let error = zip(found, expected).map { abs($0 - $1) }.max() ?? 0
        #expect(error <= 2e-4 * largest, "member \(member), \(form), \(kind)")
      }
    }
  }

  @Test("decoding token by token is the whole pass, for every member")
  func decoding() throws {
    let model = try model()
    let strategy = Perturbation.Strategy(seed: 8, sigma: Self.sigma)
    func make() -> Perturbation {
      Perturbation(
        strategy, epoch: 3, members: [4, 5], parameters: model.parameters, on: model.device)
    }
    let whole = try logits(model, 2, .chunkwise, make())
    let steps = try Perturbation.$current.withValue(make()) {
      var state = model.makeState(batch: 2)
      let text = tokens(2, 9, on: model.device)
      var last: [Float] = []
      for t in 0..<9 {
        let h = model.hidden(
          text.sliced(t..<t + 1, axis: 1), state: &state, form: .recurrent)
        last = try model.logits(h).floats()
      }
      return last
    }
    for row in 0..<2 {
      let end = whole[(row * 9 + 8) * 256..<(row * 9 + 9) * 256]
      for (a, b) in zip(end, steps[row * 256..<(row + 1) * 256]) { #expect(abs(a - b) < 1e-4) }
    }
  }

  @Test("noise: members of a pair mirror, pairs and generations differ, the moments are right")
  func noise() throws {
    let device = try CPUDevice()
    func numbers(_ members: [Int32], epoch: UInt32 = 0, leaf: Int = 0) throws -> [Float] {
      let noise = Perturbation.Noise(
        Perturbation.Strategy(seed: 1, sigma: 1), epoch: epoch,
        members: Tensor(members, shape: [members.count], on: device))
      return try noise.full(leaf, [4096], scale: 1, signed: true).floats()
    }
    let pair = try numbers([0, 1])
    #expect(pair[..<4096].elementsEqual(pair[4096...].map { -$0 }))
    #expect(try numbers([0]) == Array(pair[..<4096]))
    #expect(try numbers([2]) != numbers([0]))
    #expect(try numbers([0], epoch: 1) != numbers([0]))
    #expect(try numbers([0], leaf: 1) != numbers([0]))
    #expect(try numbers([-1]).allSatisfy { $0 == 0 })
    let many = try numbers((0..<64).map { 2 * $0 }).map(Double.init)
    let mean = many.reduce(0, +) / Double(many.count)
    let variance = many.reduce(0) { $0 + $1 * $1 } / Double(many.count)
    #expect(abs(mean) < 0.01)
    #expect(abs(variance - 1) < 0.01)
  }

  @Test("the estimate is the weighted sum of the perturbations")
  func estimate() throws {
    let model = try model()
    let n = 600  // more pairs than a chunk
    let strategy = Perturbation.Strategy(seed: 2, sigma: 0.1, rank: 2)
    let weights = (0..<n).map { Double(($0 * 7919) % 13) - 6 }
    let leaves: Set<Int> = [0, 1]
    let found = Estimate.gradients(
      strategy, epoch: 5, weights: weights, parameters: model.parameters, used: leaves,
      on: model.device)
    for leaf in leaves {
      let shape = model.parameters[leaf].shape
      var expected = [Double](repeating: 0, count: shape.elementCount)
      for first in stride(from: 0, to: n, by: 100) {
        let members = (first..<first + 100).map { Int32($0) }
        let noise = Perturbation.Noise(
          strategy, epoch: 5, members: Tensor(members, shape: [100], on: model.device))
        if shape.rank == 2 {
          let (down, up) = noise.factors(
            leaf, shape, scale: strategy.matrixScale, signed: true)
          let (b, a) = (try down.floats(), try up.floats())
          for i in 0..<100 {
            for l in 0..<2 {
              for r in 0..<shape[0] {
                for k in 0..<shape[1] {
                  expected[r * shape[1] + k] +=
                    weights[first + i] * Double(a[(i * 2 + l) * shape[0] + r])
                    * Double(b[(i * 2 + l) * shape[1] + k])
                }
              }
            }
          }
        } else {
          let z = try noise.full(leaf, shape, scale: 0.1, signed: true).floats()
          for i in 0..<100 {
            for k in expected.indices {
              expected[k] += weights[first + i] * Double(z[i * expected.count + k])
            }
          }
        }
      }
      let scale = -1 / Double(n).squareRoot()
      let gradient = try #require(found[leaf]).floats()
      let largest = expected.map { abs($0 * scale) }.max() ?? 1
      for (g, e) in zip(gradient, expected) { #expect(abs(Double(g) - e * scale) < 1e-4 * largest) }
    }
    #expect(found[2] == nil)
    let none = Estimate.gradients(
      strategy, epoch: 5, weights: [Double](repeating: 1, count: 10),
      parameters: model.parameters, used: [0], on: model.device)
    #expect(try #require(none[0]).floats().allSatisfy { $0 == 0 })
  }

  @Test("shapings")
  func shapings() {
    let scores = [[1.0], [3.0], [2.0], [2.0], [10.0], [0.0]]
    let z = FitnessShaping.zScore.weights(scores)
    #expect(abs(z.reduce(0, +)) < 1e-9)
    #expect(abs(z.reduce(0) { $0 + $1 * $1 } / 6 - 1) < 1e-4)
    #expect(FitnessShaping.sign.weights(scores) == [-1, 1, 0, 0, 1, -1])
    #expect(
      FitnessShaping.centeredRank.weights(scores).map { ($0 * 10).rounded() }
        == [-3, 3, 0, 0, 5, -5])
    let groups = FitnessShaping.group.weights(scores, group: 2)
    for g in 0..<3 { #expect(abs(groups[2 * g] + groups[2 * g + 1]) < 1e-9) }
    #expect(FitnessShaping.zScore.weights([[5], [5], [5], [5]]).allSatisfy { $0 == 0 })
    let questions = FitnessShaping.perQuestion.weights([[0, 100], [1, 100], [2, 101], [1, 99]])
    #expect(abs(questions.reduce(0, +)) < 1e-9)
    let base = FitnessShaping.baseline.weights([[1], [1], [2], [0]])
    #expect(base[0] == 0 && base[1] == 0 && abs(base[2] + base[3]) < 1e-9 && base[2] > 0)
  }

  @Test("the direction of rank r nears that of full rank as 1/r")
  func rank() throws {
    let result = try RankEvidence.measure(
      ranks: [1, 2, 4], pairs: 1 << 17, device: try CPUDevice())
    #expect(abs(result.slope + 1) < 0.2, "\(result)")
  }

  private func run(
    _ path: String, stopAfter: Int? = nil, chunkRows: Int = 16, resumes: Bool = false
  ) throws -> EvolutionTrainer {
    let folder = RunFolder(path)
    let model = try model()
    var c = EvolutionConfiguration()
    (c.population, c.generations, c.rows, c.length, c.chunkRows) = (32, 6, 2, 16, chunkRows)
    (c.sigma, c.learningRate, c.evaluateEvery, c.checkpointEvery) = (0.02, 2, 0, 2)
    c.optimizer = .momentum
    if !resumes {
      let text = Array(String(repeating: "the cat sat on the mat. ", count: 60).utf8)
      try folder.createData(
        corpus: Corpus(train: [text], validation: [Array(text[..<200])], source: "cats"),
        tokenizer: ByteTokenizer())
    }
    let task = try LanguageTask(
      model: model, reward: .loss, folder: folder, configuration: c)
    let trainer = EvolutionTrainer(
      task: task, configuration: c, folder: folder, device: model.device)
    if resumes { #expect(try trainer.resume().isEmpty) }
    var left = stopAfter ?? .max
    try trainer.run(shouldStop: {
      left -= 1
      return left < 0
    })
    return trainer
  }

  @Test("a run does not depend on chunks, and a resumed one gives its bits")
  func resumes() throws {
    let path =
      FileManager.default.temporaryDirectory.path + "/eggroll-\(UInt64.random(in: 0 ... .max))"
    defer { try? FileManager.default.removeItem(atPath: path) }
    let whole = try run(path + "/whole")
    _ = try run(path + "/parts", stopAfter: 4)
    let rest = try run(path + "/parts", resumes: true)
    for (a, b) in zip(whole.task.parameters, rest.task.parameters) {
      #expect(try a.value.floats() == b.value.floats(), "\(a.name)")
    }
    let chunked = try run(path + "/chunks", chunkRows: 64)
    for (a, b) in zip(whole.task.parameters, chunked.task.parameters) {
      #expect(try a.value.floats() == b.value.floats(), "\(a.name) in other chunks")
    }
  }

  @Test("a program that scores may answer in any order, crash and hang")
  func program() throws {
    func request(_ id: Int) -> RewardProgram.Request {
      .init(id: id, generation: 0, member: id, prompt: "p", completion: "c")
    }
    let requests = (0..<3).map(request)
    let id = #"id=${l#*'"id":'}; id=${id%%[,\}]*}; echo '{"id":'$id',"score":'$((id * 2))'}'"#
    let backwards = RewardProgram(
      command: "while read -r a; read -r b; read -r c; do "
        + "for l in \"$c\" \"$b\" \"$a\"; do \(id); done; done", timeout: 10)
    #expect(try backwards.scores(requests) == [0, 2, 4])
    #expect(try backwards.scores(requests) == [0, 2, 4])
    // Dies after one answer; started anew it goes on with what is owed.
    let mortal = RewardProgram(command: "read -r l; \(id)", timeout: 10, retries: 3)
    #expect(try mortal.scores(requests) == [0, 2, 4])
    #expect(throws: EvolutionError.self) {
      _ = try RewardProgram(command: "sleep 5", timeout: 0.1, retries: 1).scores(requests)
    }
    #expect(throws: EvolutionError.self) {
      _ = try RewardProgram(command: "echo nonsense; cat", retries: 1).scores(requests)
    }
    #expect(throws: EvolutionError.self) {
      _ = try RewardProgram(command: "/does/not/exist", retries: 0).scores(requests)
    }
  }
}
