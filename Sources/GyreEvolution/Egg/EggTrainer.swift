import FoundationEssentials
import GyreCheckpoints
import GyreRecurrence
import GyreTensors
import GyreTraining

/// One line of `metrics.jsonl` of an evolution.
public struct EvolutionMetrics: Codable, Sendable, Equatable {
  public var generation: Int
  /// Tokens, or steps of environments, that all members together went through.
  public var tokens: Int
  /// Of the population; EGG's and a language model's in bits a byte with a minus.
  public var meanFitness: Double
  public var bestFitness: Double
  public var validationBitsPerByte: Double?
  /// Mean return, or score, of the model itself.
  public var validationReturn: Double? = nil
  /// Seconds of the generation, and their parts.
  public var seconds: Double
  public var forward, noise, update, scoring: Double

  enum CodingKeys: String, CodingKey {
    case generation, tokens, seconds, forward, noise, update, scoring
    case meanFitness = "mean_fitness"
    case bestFitness = "best_fitness"
    case validationBitsPerByte = "val_bits_per_byte"
    case validationReturn = "val_return"
  }

  /// The line, keys sorted.
  public func line() throws -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys]
    encoder.nonConformingFloatEncodingStrategy = .convertToString(
      positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
    return String(decoding: try encoder.encode(self), as: UTF8.self) + "\n"
  }

  /// The lines of a file up to a generation.
  public static func read(_ path: String, through generation: Int = .max) -> [EvolutionMetrics] {
    guard let file = try? MappedFile(path: path) else { return [] }
    var lines: [EvolutionMetrics] = []
    for line in file.withUnsafeBytes({ Array($0) }).split(separator: UInt8(ascii: "\n")) {
      guard let m = try? JSONDecoder().decode(EvolutionMetrics.self, from: Data(line)),
        m.generation <= generation
      else { break }
      lines.append(m)
    }
    return lines
  }
}

/// Evolves EGG in a run folder. A run is a pure function of its configuration and text, so that a
/// resumed run gives the bits of one that was not interrupted.
public final class EggTrainer {
  public let model: EggModel
  public let configuration: EggConfiguration
  public let folder: RunFolder
  private let text: EggText
  private let validation: [UInt8]
  /// States of the population, a tensor a chunk.
  private var states: [Tensor]
  /// Votes that have moved no weight yet; nil where they are not carried.
  private var carried: Tensor?
  /// The leader's: states of all ranks' members at the last generation that asked for them.
  private var gathered: [Int8]?
  /// Streams of a chunk: bounds the memory of one launch.
  private let chunkStreams: Int
  /// Generations done.
  public private(set) var generation = 0
  public private(set) var history: [EvolutionMetrics] = []
  /// Part of the forward pass that a tile spends before its first token; measured.
  private var fixedShare: Double?
  private let group: (any WorkerGroup)?
  private let onFailure: WorkerFailure
  private var isLeader: Bool { group?.isLeader ?? true }
  /// The streams whose members this process scores: all, or its slice of them.
  private var streams: Range<Int>
  /// Told of a worker that was lost.
  public var onLoss: (String) -> Void = { _ in }

  /// - Parameters:
  ///   - model: with weights of its own memory: they are updated in place.
  ///   - group: processes that score the population together; nil: this one alone.
  ///   - onFailure: what happens when one of them ends. Members' states end with it, so that the others go
  ///     back to the last checkpoint.
  public init(
    model: EggModel, configuration: EggConfiguration, folder: RunFolder,
    group: (any WorkerGroup)? = nil, onFailure: WorkerFailure = .stop
  ) throws {
    self.group = group
    self.onFailure = onFailure
    streams = group?.slice(of: configuration.streams) ?? 0..<configuration.streams
    self.model = model
    self.configuration = configuration
    self.folder = folder
    let shards = try folder.shards()
    guard shards.train.vocabulary == EggShape.vocabulary else {
      throw EvolutionError.configuration(field: "tokenizer", rule: "must be bytes: EGG reads bytes")
    }
    text = try EggText(
      shards.train, streams: configuration.streams, tokens: configuration.tokens,
      seed: configuration.seed)
    validation = EggText.bytes(shards.validation)
    chunkStreams = max(
      1, EggTrainer.chunkMembers / (configuration.population / configuration.streams))
    states = []
    if configuration.votes == .carried {
      carried = .zeros([model.shape.parameterCount], .int32, on: model.weights.device)
    }
    states = freshStates()
  }

  private static let chunkMembers = 1 << 16

  /// Members of a stream.
  private var each: Int { configuration.population / configuration.streams }

  /// The first streams of the chunks of some streams.
  private func chunks(_ streams: Range<Int>) -> [Range<Int>] {
    stride(from: streams.lowerBound, to: streams.upperBound, by: chunkStreams).map {
      $0..<min($0 + chunkStreams, streams.upperBound)
    }
  }

  private func freshStates() -> [Tensor] {
    chunks(streams).map { model.state(members: $0.count * each) }
  }

  /// Generations until the configured end or until `shouldStop`; saves at the end either way.
  public func run(
    shouldStop: () -> Bool = { false }, report: (EvolutionMetrics) throws -> Void = { _ in }
  ) throws {
    var lastSaved: Int?
    var stops = false
    if group != nil, generation == 0 {
      // What a lost worker's members read is lost with it: there must be something to go back to.
      try gatherStates()
      if isLeader { try save() }
    }
    while generation < configuration.generations, !stops {
      // All ranks stop after the same generation, the one in which the leader was asked to.
      if group == nil, shouldStop() { break }
      var metrics: EvolutionMetrics
      do {
        (metrics, stops) = try advance(stops: isLeader && group != nil && shouldStop())
      } catch let error as EvolutionError {
        try recover(error)
        continue
      }
      if group != nil, generation == configuration.generations || stops || isCheckpoint {
        do { try gatherStates() } catch { try recover(error) }
      }
      guard isLeader else { continue }
      let every = configuration.evaluateEvery
      if generation == configuration.generations || (every > 0 && generation % every == 0) {
        metrics.validationBitsPerByte = try evaluate()
      }
      history.append(metrics)
      try folder.append(try metrics.line(), to: folder.metrics)
      try report(metrics)
      if isCheckpoint {
        try save()
        lastSaved = generation
      }
    }
    guard isLeader else { return }
    if lastSaved != generation { try save() }
    _ = try model.writer().write(to: folder.weights)
  }

  /// Bits a byte of the held-out text.
  public func evaluate() throws -> Double {
    let (bits, bytes) = try model.score(validation)
    return bits / Double(max(bytes, 1))
  }

  private var isCheckpoint: Bool {
    configuration.checkpointEvery > 0 && generation % configuration.checkpointEvery == 0
  }

  /// Goes back to the last checkpoint with the ranks that are left.
  private func recover(_ error: EvolutionError) throws {
    guard case .worker(let lost, _) = error, onFailure == .drop, let group, !lost.isEmpty,
      !lost.contains(0)
    else { throw error }
    streams = group.slice(of: configuration.streams)
    states = freshStates()
    _ = try resume()
    onLoss("\(error): \(group.ranks.count) go on from generation \(generation)")
  }

  private func advance(stops: Bool) throws -> (EvolutionMetrics, stops: Bool) {
    let c = configuration
    let clock = ContinuousClock()
    let start = clock.now
    let (bytes, startsAfresh) = text.window(generation)
    if startsAfresh { states = freshStates() }
    var fitness: [Int32] = []
    fitness.reserveCapacity(c.population)
    let width = c.tokens + 1
    let forwardStart = clock.now
    for (i, chunk) in chunks(streams).enumerated() {
      let state = states[i]
      let rows = bytes[chunk.lowerBound * width..<chunk.upperBound * width]
      let tokens = Tensor(Array(rows), shape: [chunk.count, width], on: model.weights.device)
      let op = EggForward(
        model.shape, noise: noise(firstPair: chunk.lowerBound * each / 2), group: each)
      if fixedShare == nil { fixedShare = try measureFixedShare(op, tokens, state) }
      let found = apply(op, [model.weights, tokens, state])
      states[i] = found[1]
      fitness += try found[0].elements(Int32.self)
    }
    let stops = try exchange(&fitness, stops: stops)
    let forwardEnd = clock.now
    let signs: [Int8] = (0..<c.population / 2).map { j in
      let difference = fitness[2 * j] - fitness[2 * j + 1]
      return Int8(difference.signum())
    }
    let votes = Tensor(signs, shape: [signs.count], on: model.weights.device)
    let updated = [model.weights] + (carried.map { [$0] } ?? [])
    model.weights.device.launch(
      KernelCall(
        op: c.update(noise(firstPair: 0), at: generation),
        inputs: [model.weights, votes] + updated.dropFirst(), outputs: updated))
    try model.weights.device.synchronize()
    let end = clock.now
    generation += 1
    let total = fitness.reduce(0) { $0 + Int($1) }
    let scale = 1 / (16 * Double(c.tokens))
    let forward = seconds(forwardEnd - forwardStart)
    let noisePart = forward * (fixedShare ?? 0)
    let metrics = EvolutionMetrics(
      generation: generation, tokens: generation * c.population * c.tokens,
      meanFitness: Double(total) / Double(c.population) * scale,
      bestFitness: Double(fitness.max() ?? 0) * scale, validationBitsPerByte: nil,
      seconds: seconds(end - start), forward: forward - noisePart, noise: noisePart,
      update: seconds(end - forwardEnd), scoring: 0)
    return (metrics, stops)
  }

  /// The fitness of the whole population from that of this process's members; whether the leader stops.
  private func exchange(
    _ fitness: inout [Int32], stops: Bool
  ) throws(EvolutionError) -> Bool {
    guard let group else { return stops }
    var message = WorkerMessage()
    message.write(stops ? 1 : 0)
    message.write(fitness.count)
    for value in fitness { message.write(Int(value)) }
    fitness = []
    var leaderStops = false
    for (rank, part) in try group.gather(message.bytes).enumerated() {
      var message = WorkerMessage(part)
      let asked = try message.readInteger() != 0
      if rank == 0 { leaderStops = asked }
      for _ in 0..<(try message.readInteger()) {
        fitness.append(Int32(truncatingIfNeeded: try message.readInteger()))
      }
    }
    guard fitness.count == configuration.population else {
      throw .worker(
        ranks: [], reason: "scored \(fitness.count) members of \(configuration.population)")
    }
    return leaderStops
  }

  /// States of all members, for a checkpoint of the leader's.
  private func gatherStates() throws(EvolutionError) {
    guard let group else { return }
    var mine: [Int8] = []
    do throws(DeviceError) {
      for state in states { mine += try state.elements(Int8.self) }
    } catch { throw .worker(ranks: [group.rank], reason: "cannot read its states: \(error)") }
    let all = try group.gather(mine.map { UInt8(bitPattern: $0) })
    gathered = isLeader ? all.joined().map { Int8(bitPattern: $0) } : nil
  }

  private func noise(firstPair: Int) -> EggNoise {
    EggNoise(
      .generated(
        seed: configuration.seed &+ 0x4547_47, epoch: configuration.epoch(generation),
        firstPair: UInt32(truncatingIfNeeded: firstPair)),
      sigmaShift: configuration.sigmaShift)
  }

  /// Noise is made inside the forward pass: its part is what does not grow with the tokens.
  private func measureFixedShare(
    _ op: EggForward, _ tokens: Tensor, _ state: Tensor
  ) throws -> Double {
    let (rows, length) = (tokens.shape[0], configuration.tokens)
    guard length > 1 else { return 0 }
    let all = try tokens.elements(UInt8.self)
    let firsts = (0..<rows).flatMap { row -> ArraySlice<UInt8> in
      let first = row * (length + 1)
      return all[first..<first + 2]
    }
    let short = Tensor(firsts, shape: [rows, 2], on: tokens.device)
    func time(_ text: Tensor) throws -> Duration {
      let start = ContinuousClock.now
      _ = apply(op, [model.weights, text, state])
      try text.device.synchronize()
      return ContinuousClock.now - start
    }
    _ = try time(short)
    let (one, many) = (seconds(try time(short)), seconds(try time(tokens)))
    let fixed = (Double(length) * one - many) / Double(length - 1)
    return min(max(fixed / many, 0), 1)
  }

  // MARK: - Checkpoints

  private struct Snapshot: Codable { var generation: Int }

  /// Writes a checkpoint and drops the oldest.
  public func save() throws {
    try folder.store.save(step: generation) { checkpoint in
      try checkpoint.write("model.safetensors", tensors: try model.writer())
      var writer = SafetensorsWriter()
      let all = try gathered ?? states.flatMap { try $0.elements(Int8.self) }
      let size = each * model.shape.layers * model.shape.width
      for (i, chunk) in chunks(0..<configuration.streams).enumerated() {
        try writer.add(
          "state.\(i)", dtype: .int8,
          shape: [chunk.count * each, model.shape.layers, model.shape.width],
          values: Array(all[chunk.lowerBound * size..<chunk.upperBound * size]))
      }
      if let carried {
        try writer.add(
          "votes", dtype: .int32, shape: carried.shape, values: try carried.elements(Int32.self))
      }
      try checkpoint.write("state.safetensors", tensors: writer)
      let text = try JSONEncoder().encode(Snapshot(generation: generation))
      try checkpoint.write("state.json", text: String(decoding: text, as: UTF8.self))
    }
    _ = try folder.store.keep(last: configuration.keptCheckpoints)
  }

  /// Goes on from the newest checkpoint that is whole; returns what was passed over.
  public func resume() throws -> [RejectedCheckpoint] {
    let (found, rejected) = try folder.store.latest()
    guard let found else {
      throw EvolutionError.file(
        path: folder.store.path,
        reason: "holds no checkpoint to resume from"
          + (rejected.isEmpty ? "" : "; \(rejected.map(\.description).joined(separator: "; "))"))
    }
    let device = model.weights.device
    let stored = try EggModel(
      model.shape, file: try found.tensors("model.safetensors"), device: device)
    try model.assign(try stored.weights.elements(Int8.self))
    let file = try found.tensors("state.safetensors")
    var all: [Int8] = []
    for (i, chunk) in chunks(0..<configuration.streams).enumerated() {
      let info = try file.info("state.\(i)")
      let shape: Shape = [chunk.count * each, model.shape.layers, model.shape.width]
      guard info.shape == shape else {
        throw EvolutionError.file(
          path: found.path + "/state.safetensors",
          reason: "state.\(i) is \(info.shape), must be \(shape): population, streams, width "
            + "and layers cannot change")
      }
      all += try file.readInt32("state.\(i)").map { Int8(truncatingIfNeeded: $0) }
    }
    let size = each * model.shape.layers * model.shape.width
    for (i, chunk) in chunks(streams).enumerated() {
      states[i] = Tensor(
        Array(all[chunk.lowerBound * size..<chunk.upperBound * size]), shape: states[i].shape,
        on: device)
    }
    if let old = carried {
      let values = try file.readInt32("votes")
      guard values.count == old.elementCount else {
        throw EvolutionError.file(
          path: found.path + "/state.safetensors",
          reason: "votes has \(values.count) numbers, must have \(old.elementCount)")
      }
      carried = Tensor(values, shape: old.shape, on: device)
    }
    generation = found.step
    history = EvolutionMetrics.read(folder.metrics, through: generation)
    guard isLeader else { return rejected }
    _ = try AtomicFile.write(
      try history.map { try $0.line() }.joined(), to: folder.metrics)
    return rejected
  }
}

extension EggModel {
  /// Copies weights into the model's memory.
  func assign(_ values: [Int8]) throws {
    guard let buffer = weights.buffer else { return }
    values.withUnsafeBytes { weights.device.write($0, to: buffer, offset: weights.byteOffset) }
    try weights.device.synchronize()
  }
}

func seconds(_ duration: Duration) -> Double { duration / .seconds(1) }
