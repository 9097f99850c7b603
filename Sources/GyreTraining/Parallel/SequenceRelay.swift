import FoundationEssentials
import GyreModels
import GyreRecurrence
import GyreTensors

/// Passes the states of layers along the ranks that hold the parts of a sequence, and their gradients
/// back.
///
/// Rank s begins layer l when rank s−1 has ended it; that one then works on layer l+1. A pass over L
/// layers so takes (L + S − 1)/L of its even share, for any layer that has a state: linear and nonlinear
/// recurrences, convolutions, and attention, whose state is the keys and values before. Numbers are those of one
/// device that reads the parts one after the other.
struct SequenceRelay: StateRelay {
  let parallel: Parallelism
  private var link: StateLink { StateLink(communicator: parallel.communicator) }

  func before(_ layer: Int, _ own: State, on device: any Device) -> State {
    guard parallel.part > 0, !own.spec.entries.isEmpty else { return own }
    let rank = parallel.communicator.rank - 1
    let state = link.receive(own.spec, batch: own.batch, from: rank, on: device)
    let link = link
    let values = state.tensors.map(\.tensor)
    Tape.current?.record(inputs: [], outputs: values) { cotangents in
      link.communicator.send(
        zip(values, cotangents).map { value, cotangent in
          cotangent?.cast(to: .float32) ?? .zeros(value.shape, on: value.device)
        }, to: rank)
      return []
    }
    return state
  }

  func after(_ layer: Int, _ state: State) {
    guard parallel.part < parallel.parts - 1, !state.spec.entries.isEmpty else { return }
    let rank = parallel.communicator.rank + 1
    let link = link
    link.send(state, to: rank)
    let values = state.tensors.map(\.tensor)
    let shapes = values.map { (TensorSpec($0.shape), $0.device) }
    Tape.current?.record(inputs: values, outputs: []) { _ in
      let gradients = shapes.map { Tensor(emptyWith: $0.0, on: $0.1) }
      link.communicator.receive(into: gradients, from: rank)
      return gradients
    }
  }

  /// Hands the states after the last part to the rank of the first, for the tokens that follow.
  func wrap(_ state: ModelState, on device: any Device) -> ModelState {
    let first = parallel.group * parallel.parts
    let last = first + parallel.parts - 1
    var result = state
    for i in state.layers.indices where !state.layers[i].spec.entries.isEmpty {
      if parallel.communicator.rank == last { link.send(state.layers[i], to: first) }
      if parallel.communicator.rank == first {
        result.layers[i] = link.receive(
          state.layers[i].spec, batch: state.batch, from: last, on: device)
      }
    }
    return result
  }
}

extension SequenceRelay {
  /// The states of all rows on the first rank; elsewhere what was given. All ranks call.
  func gathered(_ state: ModelState, on device: any Device) -> ModelState {
    guard parallel.groups > 1, parallel.part == 0 else { return state }
    guard parallel.group == 0 else {
      for layer in state.layers { link.send(layer, to: 0) }
      return state
    }
    var all = [state]
    for group in 1..<parallel.groups {
      var part = state
      for i in part.layers.indices {
        part.layers[i] = link.receive(
          part.layers[i].spec, batch: state.batch, from: group * parallel.parts, on: device)
      }
      all.append(part)
    }
    return ModelState(joining: all)
  }
}

/// States on their way between ranks: a short message that says which entries there are, then their
/// numbers.
struct StateLink {
  let communicator: any Communicator

  private struct Contents: Codable {
    struct Entry: Codable {
      /// The second extent, in which caches grow.
      var extent: Int
      var dtype: DType
    }
    var tokenCount: Int
    var entries: [Entry?]
  }

  func send(_ state: State, to rank: Int) {
    let contents = Contents(
      tokenCount: state.tokenCount,
      entries: state.spec.entries.map { entry in
        state[entry.name].map { .init(extent: $0.rank > 1 ? $0.shape[1] : 0, dtype: $0.dtype) }
      })
    communicator.send(
      message: (try? JSONEncoder().encode(contents)).map(Array.init) ?? [], to: rank)
    communicator.send(state.tensors.map(\.tensor), to: rank)
  }

  func receive(
    _ spec: StateSpec, batch: Int, from rank: Int, on device: any Device
  ) -> State {
    var state = State(spec, batch: batch)
    // After a failure, which the device keeps, the message is empty.
    let message = Data(communicator.message(from: rank))
    guard let contents = try? JSONDecoder().decode(Contents.self, from: message),
      contents.entries.count == spec.entries.count
    else { return state }
    state.tokenCount = contents.tokenCount
    for (entry, sent) in zip(spec.entries, contents.entries) {
      guard let sent else { continue }
      var shape = [batch] + entry.shape.dimensions
      if case .cache = entry.kind { shape[1] = max(0, sent.extent) }
      state[entry.name] = Tensor(emptyWith: TensorSpec(Shape(shape), sent.dtype), on: device)
    }
    communicator.receive(into: state.tensors.map(\.tensor), from: rank)
    return state
  }
}
