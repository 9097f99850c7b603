import GyreLayers
import GyreModels
import GyrePlatform
import GyreRecurrence
import GyreTensors
import Testing

/// Losses of recurrent cells, which processors compute over `[T, B, ·]`.
@Suite struct TimeMajorTests {
  /// Rows, states and gradients are those of the hidden states `[B, T, ·]`.
  @Test(arguments: ["lstm", "gru", "slstm"])
  func equalsBatchMajor(_ cell: String) throws {
    let device = try Devices.open("cpu")
    #expect(device.prefersTimeMajor)
    var c = ModelConfiguration()
    (c.vocabulary, c.width, c.layers, c.pattern) = (40, 32, 2, [cell])
    let model = try LanguageModel(
      c, source: RandomParameters(seed: 3, device: device), device: device)
    func integers(_ value: (Int) -> Int) -> Tensor {
      Tensor((0..<27).map { Int32(value($0)) }, shape: [3, 9], on: device)
    }
    let tokens = integers { $0 * 7 % 40 }
    let targets = integers { $0 % 5 == 0 ? -1 : $0 * 11 % 40 }
    let reset = integers { $0 % 9 == 4 || $0 == 20 ? 1 : 0 }
    var start = model.makeState(batch: 3)
    _ = model.hidden(tokens, state: &start)

    func run(_ timeMajor: Bool) throws -> (rows: [Float], states: [Float], gradients: [Float]) {
      var state = start
      let values = model.parameters.map(\.value)
      let tape = Tape()
      tape.watch(values)
      var rows: Tensor?
      let mean = tape.record {
        let loss =
          timeMajor
          ? model.loss(tokens, targets: targets, state: &state, reset: reset)
          : model.crossEntropy(model.hidden(tokens, state: &state, reset: reset), targets)
        rows = loss.rows
        return loss.mean
      }
      let gradients = try tape.gradients(of: mean, for: values).flatMap { try $0?.floats() ?? [] }
      #expect(rows?.shape == tokens.shape)
      return (
        try rows?.floats() ?? [],
        try state.layers.flatMap { try $0.tensors.flatMap { try $0.tensor.floats() } }, gradients
      )
    }
    let (first, second) = (try run(true), try run(false))
    for (a, b) in [
      (first.rows, second.rows), (first.states, second.states),
      (first.gradients, second.gradients),
    ] {
      #expect(a.count == b.count && a.contains { $0 != 0 })
      #expect(zip(a, b).allSatisfy { abs($0 - $1) <= 1e-5 * (1 + abs($1)) })
    }
  }
}
