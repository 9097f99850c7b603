import GyreCPU
import GyreCheckpoints
import GyreLayers
import GyreModels
import GyreTensors
import GyreTokenizers
import Testing

@testable import GyreTraining

/// Where scores begin anew.
@Suite struct EvaluationTests {
  let device: any Device

  init() throws { device = try CPUDevice() }

  private func model(
    _ mixer: String, _ options: [String: JSONValue] = [:]
  ) throws -> LanguageModel {
    var c = ModelConfiguration()
    c.width = 16
    c.layers = 2
    c.pattern = [mixer]
    if !options.isEmpty { c.mixers[mixer] = .object(options) }
    return try LanguageModel(
      c, source: RandomParameters(seed: 5, device: device), device: device)
  }

  /// Attention over everything reads `context` tokens, then begins anew: each part is scored as a text of its
  /// own.
  @Test func attentionBeginsAnew() throws {
    let run = try TemporaryRun()
    _ = try makeTrainer(run.folder, settings())
    let shard = try run.folder.shards().validation
    let attention = try model("softmax_attention")
    #expect(attention.hasUnboundedState)
    var nats = 0.0
    for start in stride(from: 0, to: shard.count - 1, by: 20) {
      let row = Array(shard.tokens(start..<min(start + 20, shard.count - 1) + 1))
      let (read, next) = (Array(row.dropLast()), Array(row.dropFirst()))
      var state = attention.makeState(batch: 1)
      let loss = attention.loss(
        Tensor(read, shape: [1, read.count], on: device),
        targets: Tensor(next, shape: [1, next.count], on: device), state: &state)
      nats += try loss.rows.doubles().reduce(0, +)
    }
    // Pieces of 8 tokens do not divide 20.
    let score = try Evaluation(attention, shard, length: 8, context: 20)
    #expect(abs(score.bitsPerByte * Double(score.bytes) * 0.693_147_180_559_945_3 - nats) < 1e-3)
    #expect(score.tokens == shard.count - 1)
    #expect(try Evaluation(attention, shard, context: 200).bitsPerByte != score.bitsPerByte)
  }

  /// States of fixed size go on to the end of the text.
  @Test func recurrentStatesGoOn() throws {
    let run = try TemporaryRun()
    _ = try makeTrainer(run.folder, settings())
    let shard = try run.folder.shards().validation
    for model in [
      try model("min_gru"), try model("softmax_attention", ["window": .integer(8)]),
    ] {
      #expect(!model.hasUnboundedState)
      #expect(try Evaluation(model, shard, context: 20) == Evaluation(model, shard))
    }
  }
}
