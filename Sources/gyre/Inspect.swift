import ArgumentParser
import GyreCheckpoints
import GyreEvolution
import GyreInference
import GyreLayers
import GyreModels
import GyreRecurrence
import GyreTensors

struct Inspect: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Show what a run folder, a preset's configuration or a file of weights holds.",
    discussion: """
        gyre inspect runs/tiny-1
        gyre inspect runs/tiny-1 --batch 16 --length 1024   memory to train at another shape
        gyre inspect model.safetensors
        gyre inspect model.Q4_K.gguf
        gyre inspect model.safetensors.index.json
        gyre inspect mamba2-100m                            a preset, before training it

      Memory to train is that of one step with AdamW, counted on a device that allocates nothing.
      """)

  @Argument(
    help:
      "A run folder, a safetensors file or index, a GGUF file, a config.json, or a preset's name.")
  var path: String
  @Option(help: "Sequences of a training step.") var batch = 16
  @Option(help: "Tokens of a sequence, and where caches of attention are counted.") var length = 256
  @Flag(help: "Every tensor instead of groups of layers.") var all = false
  @Flag(help: "One JSON object on standard output.") var json = false

  func validate() throws {
    if batch < 1 || length < 1 { throw ValidationError("--batch and --length must be positive") }
  }

  func run() throws {
    if Files.kind(path) == .folder, let egg = try EggModel.shape(folder: path) {
      try inspect(egg)
      return
    }
    let (configuration, tensors) = try open()
    var result = Result(path: path)
    if let configuration {
      let model = try LanguageModel(
        configuration, source: UninitializedParameters(device: NullDevice()), device: NullDevice())
      result.architecture = Architecture(configuration)
      result.stateBytes = model.stateByteCount(tokenCount: length)
      result.memory = try TrainingMemory(configuration, batch: batch, length: length)
      result.parameters = model.parameters.map { .init($0.name, "F32", $0.shape) }
    }
    if let tensors {
      result.parameters = try tensors.names.map { name in
        let info = try tensors.info(name)
        return .init(name, info.typeName, info.shape, bytes: info.byteCount)
      }
      result.metadata = tensors.metadata
    }
    if json { try JSONOutput.document(result) } else { print(result) }
  }

  private func inspect(_ shape: EggShape) throws {
    var result = Result(path: path)
    result.architecture = Architecture(shape)
    result.parameters = shape.leaves.map {
      .init($0.name, "I8", $0.shape, bytes: $0.shape.elementCount)
    }
    result.stateBytes = shape.layers * shape.width
    result.metadata = ["model_type": EggModel.type]
    if json { try JSONOutput.document(result) } else { print(result) }
  }

  private func open() throws -> (ModelConfiguration?, (any TensorSource)?) {
    switch Files.kind(path) {
    case .folder?:
      let config = path + "/" + StoredModel.configurationFile
      let configuration =
        Files.kind(config) == .file ? try StoredModel.configuration(folder: path) : nil
      return (configuration, try CheckpointFolder(path: path))
    case .file? where path.hasSuffix(".json") && !path.hasSuffix(".safetensors.index.json"):
      return (try ModelConfiguration(json: try Files.read(path)), nil)
    case .file? where GGUFFile.isGGUF(path: path):
      return (try StoredModel.configuration(folder: path), try GGUFFile(path: path))
    case .file?: return (nil, try CheckpointFolder(path: path))
    case nil:
      guard Presets.names.contains(path) else {
        throw Failure(
          "'\(path)' is neither a path nor a preset; presets: \(Presets.names.joined(separator: ", "))"
        )
      }
      return (try Presets.configuration(path), nil)
    }
  }

  private func print(_ r: Result) {
    if let a = r.architecture {
      Terminal.line(Terminal.styled(r.path, .bold))
      Terminal.line(
        "\(a.layers) layers of \(a.pattern.joined(separator: ", ")), feed-forward \(a.feedForward ?? "none"), "
          + "width \(a.width), vocabulary \(Format.grouped(a.vocabulary)), norm \(a.norm)")
      Terminal.line()
    }
    var table = Table([
      ("tensor", .left), ("type", .left), ("shape", .left), ("elements", .right), ("bytes", .right),
    ])
    for row in all ? r.parameters : r.groups { table.add(row.cells) }
    table.addRule()
    table.add(["total", "", "", Format.grouped(r.elements), Format.bytes(r.bytes)])
    table.print()
    if let state = r.stateBytes {
      Terminal.line()
      Terminal.line("state of a sequence: \(Format.grouped(state)) bytes after \(length) tokens")
    }
    guard let m = r.memory else { return }
    Terminal.line()
    var memory = Table([
      ("memory to train, batch \(batch) of \(length) tokens", .left), ("bytes", .right),
    ])
    for (name, bytes) in [
      ("parameters", m.parameters), ("gradients", m.gradients),
      ("optimizer state (AdamW)", m.optimizer),
      ("activations", m.activations), ("working memory", m.working),
    ] { memory.add([name, Format.bytes(bytes)]) }
    memory.addRule()
    memory.add(["peak", Format.bytes(m.peak)])
    memory.print()
  }

  struct Architecture: Encodable {
    var pattern: [String]
    var feedForward: String?
    var layers, width, vocabulary: Int
    var norm: String
    init(_ shape: EggShape) {
      pattern = [EggModel.type]
      feedForward = "egg"
      (layers, width, vocabulary) = (shape.layers, shape.width, EggShape.vocabulary)
      norm = "integer mean magnitude"
    }
    init(_ c: ModelConfiguration) {
      pattern = c.pattern
      feedForward = c.feedForward
      (layers, width, vocabulary) = (c.layers, c.width, c.vocabulary)
      norm = c.norm.rawValue
    }
  }

  struct Entry: Encodable {
    var name, type: String
    var shape: [Int]
    var elements, bytes: Int
    var count = 1
    init(_ name: String, _ type: String, _ shape: Shape, bytes: Int? = nil) {
      self.name = name
      self.type = type
      self.shape = shape.dimensions
      elements = shape.elementCount
      self.bytes = bytes ?? 4 * shape.elementCount
    }
    var cells: [String] {
      let extents = "[" + shape.map(String.init).joined(separator: ", ") + "]"
      return [
        name, type, count > 1 ? "\(count) × \(extents)" : extents, Format.grouped(elements),
        Format.bytes(bytes),
      ]
    }
  }

  struct Result: Encodable {
    var path: String
    var architecture: Architecture?
    var parameters: [Entry] = []
    var stateBytes: Int?
    var memory: TrainingMemory?
    var metadata: [String: String] = [:]
    init(path: String) { self.path = path }

    var elements: Int { parameters.reduce(0) { $0 + $1.elements } }
    var bytes: Int { parameters.reduce(0) { $0 + $1.bytes } }

    /// Tensors of one place in all layers as one row: `layers.*.mixer.gates.weight`.
    var groups: [Entry] {
      var order: [String] = []
      var byKey: [String: Entry] = [:]
      for entry in parameters {
        let name = entry.name.split(separator: ".")
          .map { $0.allSatisfy(\.isNumber) ? "*" : String($0) }.joined(separator: ".")
        let key = "\(name) \(entry.type) \(entry.shape)"
        guard var group = byKey[key] else {
          order.append(key)
          byKey[key] = entry
          byKey[key]?.name = name
          continue
        }
        group.count += 1
        group.elements += entry.elements
        group.bytes += entry.bytes
        byKey[key] = group
      }
      return order.compactMap { byKey[$0] }
    }
  }
}
