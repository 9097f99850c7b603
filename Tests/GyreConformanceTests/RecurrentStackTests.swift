import GyreCPU
import GyreCheckpoints
import GyreConformance
import GyreLayers
import GyreModels
import GyreRecurrence
import GyreTensors
import Testing

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Networks of torch.nn and of the Keras layout, with what those give. `recurrent.safetensors` was
/// made by torch 2.13 and, for Keras, from its definitions in float64.
@Suite("Recurrent weights of other frameworks")
struct RecurrentStackTests {
  static let path = URL(fileURLWithPath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent()
    .appendingPathComponent("Fixtures/recurrent.safetensors").path

  private let file: SafetensorsFile
  private let device: CPUDevice
  private let x: Tensor

  init() throws {
    file = try SafetensorsFile(path: Self.path)
    device = try CPUDevice(poisons: true)
    x = try file.tensor("x", on: device)
  }

  private func close(_ y: Tensor, _ name: String) throws {
    let expected = try file.tensor(name, on: device)
    #expect(y.shape == expected.shape, "\(name)")
    #expect(Tolerance.error(try y.doubles(), try expected.doubles()) < 2e-6, "\(name)")
  }

  /// The states of torch, `[layers · directions, B, H]`, in place.
  private func start(_ network: RecurrentStack, _ name: String) throws -> [State] {
    var states = network.states(batch: x.shape[0])
    for entry in ["h", "c"] where file.contains("\(name).start_\(entry)") {
      let all = try file.tensor("\(name).start_\(entry)", on: device)
      for i in states.indices {
        states[i][entry] = all.sliced(i..<i + 1, axis: 0).reshaped([all.shape[1], all.shape[2]])
      }
    }
    return states
  }

  private func joined(_ states: [State], _ entry: String) -> Tensor {
    concatenated(
      states.map { s in
        let t = s.value(entry, on: device)
        return t.reshaped([1, t.shape[0], t.shape[1]])
      }, axis: 0)
  }

  @Test(arguments: [
    "lstm_deep", "lstm_both", "lstm_projected", "lstm_plain", "gru_both", "rnn_tanh", "rnn_relu",
  ])
  func torch(_ name: String) throws {
    let network = try RecurrentStack(
      torch: file, prefix: name + ".", kind: name == "rnn_relu" ? .rnnReLU : nil, on: device)
    let whole = try network(x, states: try start(network, name))
    try close(whole.output, name + ".expected")
    try close(joined(whole.states, "h"), name + ".final_h")
    let lengths = try file.readInt32("lengths").map(Int.init)
    let packed = try network(x, states: try start(network, name), lengths: lengths)
    try close(packed.output, name + ".packed")
    try close(joined(packed.states, "h"), name + ".packed_h")
    if name.hasPrefix("lstm") {
      try close(joined(whole.states, "c"), name + ".final_c")
      try close(joined(packed.states, "c"), name + ".packed_c")
    }
  }

  @Test(arguments: [
    ("keras_lstm", RecurrentKind.lstm), ("keras_gru", .gru), ("keras_gru_before", .gruResetBefore),
    ("keras_rnn", .rnnTanh),
  ])
  func keras(_ name: String, _ kind: RecurrentKind) throws {
    let weights = try RecurrentWeights(
      keras: file, kind, kernel: name + ".kernel", recurrentKernel: name + ".recurrent_kernel",
      bias: name + ".bias", on: device)
    let network = try RecurrentStack([[try RecurrentLayer(kind, weights)]])
    try close(try network(x).output, name + ".expected")
  }

  /// A cell of torch has the names of a layer without its number.
  @Test func cell() throws {
    var memory = MemoryTensors()
    for part in ["weight_ih", "weight_hh"] {
      let name = "lstm_plain.\(part)_l0"
      try memory.add("cell." + part, shape: try file.info(name).shape, try file.readFloat32(name))
    }
    let network = try RecurrentStack(torch: memory, prefix: "cell.", on: device)
    #expect(network.layers[0][0].kind == .lstm)
    try close(try network(x).output, "lstm_plain.expected")
  }

  @Test func everyRowOfItsLengthAndNone() throws {
    let network = try RecurrentStack(torch: file, prefix: "gru_both.", on: device)
    let empty = try network(x.sliced(0..<0, axis: 1))
    #expect(empty.output.shape == [3, 0, 12])
    let none = try network(x, lengths: [0, 7, 0])
    #expect(try none.output.sliced(0..<1, axis: 0).floats().allSatisfy { $0 == 0 })
    let full = try network(x)
    let row = try none.output.sliced(1..<2, axis: 0).doubles()
    #expect(Tolerance.error(row, try full.output.sliced(1..<2, axis: 0).doubles()) < 2e-6)
  }

  /// The layer of the xlstm package 2.0.6 (its `vanilla` backend made the output), weights as both of
  /// its backends store them; whole and in two pieces.
  @Test(arguments: ["layer.", "cuda."]) func scalarLSTM(_ prefix: String) throws {
    let file = try SafetensorsFile(
      path: Self.path.replacing("recurrent.safetensors", with: "xlstm_slstm.safetensors"))
    let layer = try ScalarLSTMLayer(xlstm: file, prefix: prefix, on: device)
    #expect(layer.heads == 3 && layer.width == 12)
    let x = try file.tensor("x", on: device)
    let expected = try file.tensor("expected", on: device).doubles()
    var state = State(layer.stateSpec, batch: 2)
    #expect(Tolerance.error(try layer(x, state: &state).doubles(), expected) < 2e-6)
    state = State(layer.stateSpec, batch: 2)
    let parts = [0..<4, 4..<9].map { layer(x.sliced($0, axis: 1), state: &state) }
    #expect(
      Tolerance.error(try concatenated(parts, axis: 1).doubles(), expected) < 2e-6)
    #expect(throws: CheckpointError.self) {
      try ScalarLSTMLayer(xlstm: file, prefix: "none.", on: device)
    }
  }

  /// Densely connected: layer by layer, each on all outputs below.
  @Test func denseConnections() throws {
    func layer(_ inputs: Int, _ seed: UInt64) throws -> RecurrentLayer {
      func values(_ shape: Shape) -> Tensor {
        Tensor(
          CounterGenerator(seed: seed, stream: UInt64(shape[1])).normals(shape.elementCount)
            .map { $0 * 0.4 }, shape: shape, on: device)
      }
      return try RecurrentLayer(
        .gru, RecurrentWeights(input: values([15, inputs]), recurrent: values([15, 5])))
    }
    let layers = [try layer(8, 1), try layer(13, 2), try layer(18, 3)]
    let x = Tensor(CounterGenerator(seed: 4).normals(3 * 7 * 8), shape: [3, 7, 8], on: device)
    let network = try RecurrentStack(layers.map { [$0] }, isDense: true)
    var (input, y) = (x, x)
    for layer in layers {
      var state = State(layer.stateSpec, batch: 3)
      y = layer(input, state: &state)
      input = concatenated([input, y])
    }
    #expect(Tolerance.error(try network(x).output.doubles(), try y.doubles()) < 1e-6)
    #expect(throws: CheckpointError.self) { try RecurrentStack(layers.map { [$0] }) }
  }

  @Test func wrongInputIsNamed() throws {
    let network = try RecurrentStack(torch: file, prefix: "gru_both.", on: device)
    func path(_ body: () throws(ConfigurationError) -> Void) -> String? {
      do throws(ConfigurationError) {
        try body()
        return nil
      } catch { return error.path }
    }
    #expect(
      path { () throws(ConfigurationError) in _ = try network(x, lengths: [8, 1, 1]) } == "lengths")
    #expect(path { () throws(ConfigurationError) in _ = try network(x, lengths: [1]) } == "lengths")
    #expect(path { () throws(ConfigurationError) in _ = try network(x, states: []) } == "states")
    let wide = Tensor.zeros([3, 7, 9], on: device)
    #expect(path { () throws(ConfigurationError) in _ = try network(wide) } == "x")
    #expect(throws: CheckpointError.self) {
      try RecurrentStack(torch: file, prefix: "none.", on: device)
    }
    #expect(throws: CheckpointError.self) {
      try RecurrentStack(torch: file, prefix: "lstm_deep.", kind: .gru, on: device)
    }
    #expect(throws: CheckpointError.self) {
      try RecurrentWeights(
        keras: file, .gru, kernel: "keras_gru_before.kernel",
        recurrentKernel: "keras_gru_before.recurrent_kernel", bias: "keras_gru_before.bias",
        on: device)
    }
  }
}
