import GyreLayers
import GyreModels
import GyrePlatform
import GyreRecurrence
import GyreTensors
import Testing

/// Models whose sublayers read an attention over the sums of blocks before them.
@Suite struct ResidualAttentionTests {
  private func model(block: Int) throws -> LanguageModel {
    let json = """
      {"vocabulary": 40, "width": 16, "layers": 3, "pattern": ["min_gru"],
       "residual": "attention", "residual_block": \(block)}
      """
    return try LanguageModel(
      try ModelConfiguration(json: Array(json.utf8)), source: Noise(),
      device: try Devices.open("cpu"))
  }

  /// Every parameter random: queries that start at zero would not choose.
  private final class Noise: ParameterSource {
    func value(name: String, shape: Shape, initializer: Initializer) -> Tensor? {
      let values = CounterGenerator(seed: 1, name: name).normals(shape.elementCount)
      guard let device = try? Devices.open("cpu") else { return nil }
      return Tensor(values.map { 0.4 * $0 }, shape: shape, on: device)
    }
  }

  private func tokens(_ model: LanguageModel) -> Tensor {
    Tensor((0..<24).map { Int32($0 * 7 % 40) }, shape: [2, 12], on: model.device)
  }

  @Test(arguments: [1, 2, 4])
  func decodesWhatItScores(_ block: Int) throws {
    let model = try model(block: block)
    let tokens = tokens(model)
    var state = model.makeState(batch: 2)
    let whole = try model.logits(model.hidden(tokens, state: &state)).floats()
    var step = model.makeState(batch: 2)
    for t in 0..<12 {
      let hidden = model.hidden(
        tokens.sliced(t..<t + 1, axis: 1), state: &step, form: .recurrent)
      let y = try model.logits(hidden).floats()
      for b in 0..<2 {
        for i in 0..<40 {
          #expect(abs(y[b * 40 + i] - whole[(b * 12 + t) * 40 + i]) < 1e-4)
        }
      }
    }
  }

  @Test(arguments: [1, 4])
  func recomputationChangesNoGradient(_ block: Int) throws {
    var model = try model(block: block)
    let tokens = tokens(model)
    func gradients() throws -> [Float] {
      let values = model.parameters.map(\.value)
      let tape = Tape()
      tape.watch(values)
      let loss = tape.record {
        var state = model.makeState(batch: 2)
        return model.loss(tokens, targets: tokens, state: &state).mean
      }
      return try tape.gradients(of: loss, for: values).flatMap { try $0?.floats() ?? [] }
    }
    let kept = try gradients()
    model.rematerializes = true
    let again = try gradients()
    // All but the first sublayer's, which has nothing to choose from.
    #expect(kept.count > 0 && kept.count == again.count)
    #expect(zip(kept, again).allSatisfy { abs($0 - $1) <= 1e-6 })
  }

  @Test func blocksAreOneOrEven() {
    #expect(throws: ConfigurationError.self) { try model(block: 3) }
    #expect(throws: ConfigurationError.self) { try model(block: 0) }
  }
}
