import GyreLayers
import GyreMixers
import GyreRecurrence
import GyreTensors

/// Initial values with noise added, so that maps which start at zero do something in checks.
final class PerturbedParameters: ParameterSource {
  private let seed: UInt64
  private let device: any Device
  init(seed: UInt64, device: any Device) {
    self.seed = seed
    self.device = device
  }
  func value(name: String, shape: Shape, initializer: Initializer) -> Tensor? {
    let start = initializer.elements(shape, CounterGenerator(seed: seed, name: name))
    let noise = CounterGenerator(seed: seed, name: name + " noise").normals(start.count)
    return Tensor(zip(start, noise).map { $0 + 0.1 * $1 }, shape: shape, on: device)
  }
}

/// A run of tokens through a mixer in one form.
struct Segment {
  /// `[B, T, D]` on the host, and what its output's gradient is.
  var x: HostSequence
  var cotangent: HostSequence
  var form: SequenceForm
  /// Tokens at which documents start, alike in all rows.
  var resets: [Int] = []
}

/// Numbers over `[B, T, D]` on the host.
struct HostSequence {
  let values: [Float]
  let shape: Shape

  var tokens: Int { shape[1] }

  init(_ values: [Float], _ shape: Shape) {
    self.values = values
    self.shape = shape
  }

  subscript(tokens range: Range<Int>) -> HostSequence {
    let (t, d) = (shape[1], shape[2])
    var part: [Float] = []
    for b in 0..<shape[0] {
      part += values[(b * t + range.lowerBound) * d..<(b * t + range.upperBound) * d]
    }
    return HostSequence(part, [shape[0], range.count, d])
  }

  func row(_ b: Int) -> HostSequence {
    let n = shape[1] * shape[2]
    return HostSequence(Array(values[b * n..<(b + 1) * n]), [1, shape[1], shape[2]])
  }

  func scaled(by factor: Float) -> HostSequence { HostSequence(values.map { $0 * factor }, shape) }
}

/// What running segments gave, on the host.
struct MixerResult {
  var y: [Double] = []
  /// Gradients to x.
  var dx: [Double] = []
  var states: [String: [Double]] = [:]
  /// Gradients to the initial state.
  var dStates: [String: [Double]] = [:]
  var dParameters: [[Double]] = []
  var final: State
}

/// A mixer with parameters on a device.
struct MixerSubject {
  let mixer: any SequenceMixer
  let parameters: [Parameter]
  let device: any Device
  let width: Int

  init<M: SequenceMixer>(
    _: M.Type, _ configuration: M.Configuration, seed: UInt64, on device: any Device,
    width: Int = 32
  ) throws {
    try configuration.validate(width: width)
    var p = ParameterBuilder(
      source: PerturbedParameters(seed: seed, device: device), device: device)
    mixer = try M(
      configuration, width: width, layer: LayerPosition(index: 1, count: 2), parameters: &p)
    parameters = p.parameters
    self.device = device
    self.width = width
  }

  func fresh(batch: Int) -> State { State(mixer.stateSpec, batch: batch) }

  /// One forward pass.
  func forward(
    _ x: Tensor, _ state: inout State, _ form: SequenceForm, resets: [Int] = []
  ) -> Tensor {
    let (batch, tokens) = (x.shape[0], x.shape[1])
    var context = SequenceContext(form: form)
    if !resets.isEmpty {
      let row = (0..<tokens).map { Int32(resets.contains($0) ? 1 : 0) }
      context.reset = Tensor(
        (0..<batch).flatMap { _ in row }, shape: [batch, tokens], on: device)
    }
    let y = mixer(x, state: &state, context: &context)
    state.tokenCount += tokens
    return y
  }

  func tensor(_ x: HostSequence) -> Tensor { Tensor(x.values, shape: x.shape, on: device) }

  /// The state after `x`, off any tape.
  func warmed(_ x: HostSequence) -> State {
    var state = fresh(batch: x.shape[0])
    _ = forward(tensor(x), &state, .recurrent)
    return state.detached()
  }

  /// Outputs alone.
  func outputs(_ segments: [Segment], from initial: State? = nil) throws -> (
    y: [Double], final: State
  ) {
    var state = initial ?? fresh(batch: segments[0].x.shape[0])
    let parts = segments.map { forward(tensor($0.x), &state, $0.form, resets: $0.resets) }
    return (try joined(parts), state)
  }

  /// Outputs, final state and all gradients. The cotangent of a final state's entry is the same
  /// for all ways to reach it.
  func run(
    _ segments: [Segment], from initial: State? = nil, stateCotangents: [String: [Float]]? = nil
  ) throws -> MixerResult {
    var state = initial ?? fresh(batch: segments[0].x.shape[0])
    let entries = state.tensors
    let xs = segments.map { tensor($0.x) }
    let values = parameters.map(\.value)
    let tape = Tape()
    tape.watch(xs + entries.map(\.tensor) + values)
    let ys = tape.record {
      zip(segments, xs).map { forward($1, &state, $0.form, resets: $0.resets) }
    }
    var seeds = zip(segments, ys).map { ($1, tensor($0.cotangent)) }
    for (name, t) in state.tensors {
      if let c = stateCotangents?[name] { seeds.append((t, Tensor(c, shape: t.shape, on: device))) }
    }
    let gradients = tape.gradients(of: seeds, for: xs + entries.map(\.tensor) + values)
    func host(_ i: Int, _ like: Tensor) throws -> [Double] {
      try gradients[i]?.doubles() ?? [Double](repeating: 0, count: like.elementCount)
    }
    var result = MixerResult(final: state.detached())
    result.y = try joined(ys)
    result.dx = try joined(xs.indices.map { gradients[$0] ?? .zeros(xs[$0].shape, on: device) })
    for (name, t) in state.tensors { result.states[name] = try t.doubles() }
    for (i, entry) in entries.enumerated() {
      result.dStates[entry.name] = try host(xs.count + i, entry.tensor)
    }
    result.dParameters = try values.indices.map {
      try host(xs.count + entries.count + $0, values[$0])
    }
    return result
  }

  /// Sequences one after the other in time, `[B, T, D]` on the host.
  private func joined(_ parts: [Tensor]) throws -> [Double] {
    let batch = parts[0].shape[0]
    let hosts = try parts.map { try $0.doubles() }
    var values: [Double] = []
    for b in 0..<batch {
      for host in hosts {
        let n = host.count / batch
        values += host[n * b..<n * (b + 1)]
      }
    }
    return values
  }
}
