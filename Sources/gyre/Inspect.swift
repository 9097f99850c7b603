import ArgumentParser
import GyreCheckpoints
import GyreEvolution
import GyreInference
import GyreLayers
import GyreModels
import GyrePlatform
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
        gyre inspect runs/lstm-1 --cells book.txt           which cells follow quotes, brackets, lines

      --cells records the states of a recurrent model over a text, finds the cells that follow a feature
      of it, and writes RUN/cells.html with the text coloured by them.

      Memory to train is that of one step with AdamW, counted on a device that allocates nothing.
      """)

  @Argument(
    help:
      "A run folder, a safetensors file or index, a GGUF file, a config.json, or a preset's name.")
  var path: String
  @Option(help: "Sequences of a training step.") var batch = 16
  @Option(help: "Tokens of a sequence, and where caches of attention are counted.") var length = 256
  @Option(help: "A text to probe the cells of a run folder with.") var cells: String?
  @Option(help: "With --cells: tokens to read at most.") var tokens = 8000
  @Flag(help: "Every tensor instead of groups of layers.") var all = false
  @Flag(help: "One JSON object on standard output.") var json = false

  func validate() throws {
    if tokens < 256 { throw ValidationError("--tokens must be at least 256") }
    if batch < 1 || length < 1 { throw ValidationError("--batch and --length must be positive") }
  }

  func run() throws {
    if let cells { return try probe(cells) }
    if Files.kind(path) == .folder, let egg = try EggModel.shape(folder: path) {
      try inspect(egg)
      return
    }
    let (configuration, tensors) = try open()
    var result = Result(path: path)
    if let configuration {
      let model = try LanguageModel(outline: configuration)
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

  private func probe(_ file: String) throws {
    let device = try Devices.open("cpu")
    let model = try StoredModel.load(folder: path, device: device)
    let cells = try RecordedCells(
      model, try StoredModel.tokenizer(folder: path), try Files.read(file), limit: tokens)
    let probes = try cells.probes(on: device)
    let page = path + "/cells.html"
    try AtomicFile.write(
      CellProbePage(title: "Cells of \(path) over \(file)", cells: cells, probes: probes).html(),
      to: page)
    if json { return try JSONOutput.document(probes) }
    var table = Table([
      ("feature", .left), ("frequency", .right), ("best cell", .left), ("its score", .right),
      ("all cells, linear", .right),
    ])
    for p in probes {
      table.add([
        p.feature.rawValue, Format.fixed(p.frequency, 3), p.unit.description,
        Format.fixed(p.unitScore, 3), Format.fixed(p.linearScore, 3),
      ])
    }
    table.print()
    Terminal.line(
      "scores on the half of the text that was not fitted: mean accuracy with and without the feature, "
        + "for line length the correlation")
    Terminal.line(page)
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
