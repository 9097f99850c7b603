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
  /// Streams of a chunk: bounds the memory of one launch.
  private let chunkStreams: Int
  /// Generations done.
  public private(set) var generation = 0
  public private(set) var history: [EvolutionMetrics] = []
  /// Part of the forward pass that a tile spends before its first token; measured.
  private var fixedShare: Double?

  /// - Parameter model: with weights of its own memory: they are updated in place.
  public init(model: EggModel, configuration: EggConfiguration, folder: RunFolder) throws {
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
    let group = configuration.population / configuration.streams
    chunkStreams = max(1, EggTrainer.chunkMembers / group)
    states = []
    states = freshStates()
  }

  private static let chunkMembers = 1 << 16

  private var group: Int { configuration.population / configuration.streams }

  private func freshStates() -> [Tensor] {
    stride(from: 0, to: configuration.streams, by: chunkStreams).map { first in
      model.state(members: min(chunkStreams, configuration.streams - first) * group)
    }
  }

  /// Generations until the configured end or until `shouldStop`; saves at the end either way.
  public func run(
    shouldStop: () -> Bool = { false }, report: (EvolutionMetrics) throws -> Void = { _ in }
  ) throws {
    var lastSaved: Int?
    while generation < configuration.generations, !shouldStop() {
      var metrics = try advance()
      let every = configuration.evaluateEvery
      if generation == configuration.generations || (every > 0 && generation % every == 0) {
        metrics.validationBitsPerByte = try evaluate()
      }
      history.append(metrics)
      try folder.append(try metrics.line(), to: folder.metrics)
      try report(metrics)
      if configuration.checkpointEvery > 0, generation % configuration.checkpointEvery == 0 {
        try save()
        lastSaved = generation
      }
    }
    if lastSaved != generation { try save() }
    _ = try model.writer().write(to: folder.weights)
  }

  /// Bits a byte of the held-out text.
  public func evaluate() throws -> Double {
    let (bits, bytes) = try model.score(validation)
    return bits / Double(max(bytes, 1))
  }

  private func advance() throws -> EvolutionMetrics {
    let c = configuration
    let clock = ContinuousClock()
    let start = clock.now
    let (bytes, startsAfresh) = text.window(generation)
    if startsAfresh { states = freshStates() }
    var fitness: [Int32] = []
    fitness.reserveCapacity(c.population)
    let width = c.tokens + 1
    let forwardStart = clock.now
    for (i, state) in states.enumerated() {
      let members = state.shape[0]
      let firstRow = i * chunkStreams
      let rows = bytes[firstRow * width..<(firstRow + members / group) * width]
      let tokens = Tensor(
        Array(rows), shape: [members / group, width], on: model.weights.device)
      let op = EggForward(
        model.shape, noise: noise(firstPair: firstRow * group / 2), group: group)
      if fixedShare == nil { fixedShare = try measureFixedShare(op, tokens, state) }
      let found = apply(op, [model.weights, tokens, state])
      states[i] = found[1]
      fitness += try found[0].elements(Int32.self)
    }
    let forwardEnd = clock.now
    let signs: [Int8] = (0..<c.population / 2).map { j in
      let difference = fitness[2 * j] - fitness[2 * j + 1]
      return Int8(difference.signum())
    }
    let votes = Tensor(signs, shape: [signs.count], on: model.weights.device)
    let op = EggUpdate(
      model.shape, noise: noise(firstPair: 0),
      threshold: EggConfiguration.threshold(alpha: c.alpha(at: generation)))
    model.weights.device.launch(
      KernelCall(op: op, inputs: [model.weights, votes], outputs: [model.weights]))
    try model.weights.device.synchronize()
    let end = clock.now
    generation += 1
    let total = fitness.reduce(0) { $0 + Int($1) }
    let scale = 1 / (16 * Double(c.tokens))
    let forward = seconds(forwardEnd - forwardStart)
    let noisePart = forward * (fixedShare ?? 0)
    return EvolutionMetrics(
      generation: generation, tokens: generation * c.population * c.tokens,
      meanFitness: Double(total) / Double(c.population) * scale,
      bestFitness: Double(fitness.max() ?? 0) * scale, validationBitsPerByte: nil,
      seconds: seconds(end - start), forward: forward - noisePart, noise: noisePart,
      update: seconds(end - forwardEnd), scoring: 0)
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
      for (i, state) in states.enumerated() {
        try writer.add(
          "state.\(i)", dtype: .int8, shape: state.shape, values: try state.elements(Int8.self))
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
    try model.assign(stored)
    let file = try found.tensors("state.safetensors")
    for (i, state) in states.enumerated() {
      let info = try file.info("state.\(i)")
      guard info.shape == state.shape else {
        throw EvolutionError.file(
          path: found.path + "/state.safetensors",
          reason: "state.\(i) is \(info.shape), must be \(state.shape): population, streams, width "
            + "and layers cannot change")
      }
      let values = try file.readInt32("state.\(i)").map { Int8(truncatingIfNeeded: $0) }
      states[i] = Tensor(values, shape: state.shape, on: device)
    }
    generation = found.step
    history = EvolutionMetrics.read(folder.metrics, through: generation)
    _ = try AtomicFile.write(
      try history.map { try $0.line() }.joined(), to: folder.metrics)
    return rejected
  }
}

extension EggModel {
  /// Copies the weights of another model of this shape.
  func assign(_ other: EggModel) throws {
    let values = try other.weights.elements(Int8.self)
    guard let buffer = weights.buffer else { return }
    values.withUnsafeBytes { weights.device.write($0, to: buffer, offset: weights.byteOffset) }
    try weights.device.synchronize()
  }
}

func seconds(_ duration: Duration) -> Double { duration / .seconds(1) }
