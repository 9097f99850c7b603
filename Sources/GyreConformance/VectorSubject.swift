import GyreCheckpoints
import GyreRecurrence
import GyreTensors

/// The engine that a file of test vectors describes, with its inputs in place.
///
/// The names of the inputs decide; where two engines share them, the equation does.
struct VectorSubject {
  let engine: String
  /// Outputs over time and the final state in the file's layout.
  let run: (SequenceForm) -> (y: Tensor, state: Tensor)

  init(_ inputs: [String: Tensor], equation: String, file: String) throws {
    var names = Set(inputs.keys)
    let initial: Set = ["s0", "h0", "c0", "hr", "hi"]
    names.subtract(initial)
    func input(_ name: String) throws -> Tensor {
      guard let t = inputs[name] else { throw VectorFiles.mismatch(file, "has no in.\(name)") }
      return t
    }
    func parts(_ list: [String]) throws -> [Tensor] { try list.map(input) }

    switch names {
    case ["a", "u"]:
      let p = try parts(["a", "u"])
      self.init(
        "DiagonalScan", DiagonalScan(channels: p[1].shape.last), ["h": inputs["h0"]],
        batch: p[1].shape[0]
      ) {
        .init(decay: p[0], decayIsLog: false, input: p[1])
      }
    case ["ar", "ai", "ur", "ui"]:
      let p = try parts(["ar", "ai", "ur", "ui"])
      let isPolar = equation.contains("exp(i")
      self.init(
        "ComplexScan", ComplexScan(channels: p[2].shape.last),
        ["re": inputs["hr"], "im": inputs["hi"]],
        output: { Self.interleaved($0.split([p[2].shape.last, p[2].shape.last])) },
        state: { state, _ in Self.interleaved([state("re"), state("im")]) }, batch: p[2].shape[0]
      ) {
        .init(
          decayReal: isPolar ? p[0] * p[1].unary(.cosine) : p[0],
          decayImaginary: isPolar ? p[0] * p[1].unary(.sine) : p[1],
          inputReal: p[2], inputImaginary: p[3])
      }
    case ["x", "dt", "A", "Bm", "C", "Dd"], ["x", "dt", "A", "Bm", "C"]:
      let p = try parts(["x", "dt", "A", "Bm", "C"])
      self.init(
        "SelectiveScan", SelectiveScan(channels: p[2].shape[0], stateSize: p[2].shape[1]),
        ["h": inputs["h0"]], batch: p[0].shape[0]
      ) { .init(x: p[0], step: p[1], A: p[2], B: p[3], C: p[4], skip: inputs["Dd"]) }
    case ["x", "w_ih", "w_hh", "b_ih", "b_hh"], ["x", "w_ih", "w_hh"]:
      try self.init(cell: inputs, equation: equation, file: file)
    case ["q", "k", "v", "i", "f"]:
      let p = try parts(["q", "k", "v", "i", "f"])
      let size = HeadSizes(p)
      self.init(
        "MatrixLSTM",
        MatrixLSTM(
          heads: size.heads, keySize: size.keys, valueSize: size.values, scale: 1, epsilon: 0), [:],
        state: { state, _ in
          let n = state("n")
          return concatenated([state("C"), n.reshaped(Shape(n.shape.dimensions + [1]))])
        }, batch: p[0].shape[0]
      ) { .init(q: p[0], k: p[1], v: p[2], inputGate: p[3], forgetGate: p[4]) }
    case ["q", "k", "v", "g", "a", "b"]:
      let p = try parts(["q", "k", "v", "g", "a", "b"])
      let size = HeadSizes(p)
      self.init(
        "GeneralizedDeltaRule",
        GeneralizedDeltaRule(heads: size.heads, keySize: size.keys, valueSize: size.values),
        ["S": inputs["s0"]], batch: p[0].shape[0]
      ) { .init(q: p[0], k: p[1], v: p[2], logDecay: p[3], a: p[4], b: p[5]) }
    case ["q", "k", "v", "beta"], ["q", "k", "v", "beta", "g"]:
      let p = try parts(["q", "k", "v", "beta"])
      let size = HeadSizes(p)
      let gate: DeltaRule.Gate =
        inputs["g"].map { $0.rank == 3 ? .scalar($0) : .vector($0) } ?? .none
      self.init(
        "DeltaRule",
        DeltaRule(
          heads: size.heads, keyHeads: size.keyHeads, keySize: size.keys, valueSize: size.values,
          scale: 1),
        ["S": inputs["s0"]], batch: p[0].shape[0]
      ) { .init(q: p[0], k: p[1], v: p[2], beta: p[3], gate: gate) }
    case ["q", "k", "v"] where equation.contains("softmax"),
      ["q", "k", "v", "g"] where equation.contains("softmax"):
      try self.init(attention: parts(["q", "k", "v"]), gates: inputs["g"], equation: equation)
    case ["q", "k", "v"], ["q", "k", "v", "g"]:
      let p = try parts(["q", "k", "v"])
      let size = HeadSizes(p)
      let decay: LinearAttention.Decay =
        inputs["g"].map { $0.rank == 1 ? .constant($0) : $0.rank == 3 ? .scalar($0) : .vector($0) }
        ?? .none
      self.init(
        "LinearAttention",
        LinearAttention(
          heads: size.heads, keyHeads: size.keyHeads, keySize: size.keys, valueSize: size.values,
          scale: 1),
        ["S": inputs["s0"]], batch: p[0].shape[0]
      ) { .init(q: p[0], k: p[1], v: p[2], decay: decay) }
    default:
      throw VectorFiles.mismatch(file, "no engine has the inputs \(inputs.keys.sorted())")
    }
  }

  /// torch.nn cells: the number of gates decides which.
  private init(cell inputs: [String: Tensor], equation: String, file: String) throws {
    guard let x = inputs["x"], let w = inputs["w_ih"], let R = inputs["w_hh"], R.shape.last > 0
    else { throw VectorFiles.mismatch(file, "has no x, w_ih and w_hh") }
    let hidden = R.shape.last
    let cell: CellScan.Cell
    switch R.shape[0] / hidden {
    case 1: cell = equation.lowercased().contains("relu") ? .elmanReLU : .elmanTanh
    case 3: cell = .gru
    case 4: cell = .lstm
    default: throw VectorFiles.mismatch(file, "no cell has recurrent weights \(R.shape)")
    }
    self.init(
      "CellScan \(cell)", CellScan(cell: cell, hiddenSize: hidden),
      ["h": inputs["h0"], "c": cell.hasMemory ? inputs["c0"] : nil],
      state: { state, _ in
        guard cell.hasMemory else { return state("h") }
        let stacked = [state("h"), state("c")].map { $0.reshaped([$0.shape[0], 1, hidden]) }
        return concatenated(stacked, axis: 1)
      }, batch: x.shape[0]
    ) {
      .init(
        gates: x.linear(w, bias: inputs["b_ih"]), recurrentWeight: R, recurrentBias: inputs["b_hh"])
    }
  }

  /// Softmax attention; the final state is the sum of the gates, or the last output without them.
  private init(attention p: [Tensor], gates: Tensor?, equation: String) throws {
    let size = HeadSizes(p)
    let batch = p[0].shape[0]
    self.init(
      "SoftmaxAttention",
      SoftmaxAttention(
        heads: p[0].shape[2], keyHeads: size.keyHeads, keySize: size.keys, valueSize: size.values,
        window: Self.window(equation), scale: 1, hasForgetGate: gates != nil), [:],
      state: { _, y in
        if let gates {
          return gates.summed(to: [batch, 1, gates.shape[2]]).reshaped([batch, gates.shape[2]])
        }
        let last = y.sliced(max(y.shape[1] - 1, 0)..<y.shape[1], axis: 1)
        return last.reshaped([batch, y.shape[2], y.shape[3]])
      }, batch: batch
    ) { .init(q: p[0], k: p[1], v: p[2], logForget: gates) }
  }

  /// W of "over the last W tokens"; nil where the equation has no such words.
  static func window(_ equation: String) -> Int? {
    let words = equation.split(whereSeparator: { $0 == " " || $0 == "," })
    guard let i = words.firstIndex(of: "last"), i + 1 < words.count else { return nil }
    return Int(words[i + 1])
  }

  /// Re and Im on a last axis of two.
  private static func interleaved(_ parts: [Tensor]) -> Tensor {
    concatenated(parts.map { $0.reshaped(Shape($0.shape.dimensions + [1])) })
  }

  /// An engine with its initial state, how its inputs are made, and how outputs and state are laid
  /// out in the file; by default as they are, the state being the engine's only entry.
  private init<E: RecurrenceEngine>(
    _ name: String, _ engine: E, _ initial: [String: Tensor?],
    output: @escaping (Tensor) -> Tensor = { $0 },
    state layout: ((_ entry: (String) -> Tensor, _ y: Tensor) -> Tensor)? = nil,
    batch: Int, inputs: @escaping () -> E.Inputs
  ) {
    self.engine = name
    run = { form in
      var state = State(engine.stateSpec, batch: batch)
      for (name, tensor) in initial { if let tensor { state[name] = tensor } }
      let y = engine(inputs(), state: &state, form: form, reset: nil)
      func entry(_ name: String) -> Tensor { state.value(name, on: y.device) }
      let final = layout.map { $0(entry, y) } ?? entry(engine.stateSpec.entries[0].name)
      return (output(y), final)
    }
  }
}

/// Sizes of q, k `[B, T, Hk, K]` and v `[B, T, H, V]`.
private struct HeadSizes {
  let heads, keyHeads, keys, values: Int
  init(_ p: [Tensor]) {
    (keyHeads, keys) = (p[1].shape[2], p[1].shape[3])
    (heads, values) = (p[2].shape[2], p[2].shape[3])
  }
}
