import FoundationEssentials
import GyreCheckpoints
import GyreLayers
import GyreTensors

/// A model in a public layout on its way into a GGUF file.
struct GGUFExport {
  private let architecture: any GGUFArchitecture.Type
  private let configuration: ForeignConfiguration
  private let source: any TensorSource
  private let map: GGUFMap

  /// - Throws: a layout that GGUF files cannot hold, with those that they can.
  init(
    family: any CheckpointFamily.Type, configuration: ForeignConfiguration,
    source: any TensorSource
  ) throws(ConfigurationError) {
    guard let architecture = Self.architecture(of: family) else {
      throw ConfigurationError(
        "model_type", "\(family.name) cannot be written as GGUF; \(Self.known) can")
    }
    self.architecture = architecture
    self.configuration = configuration
    self.source = source
    var map = GGUFMap()
    try architecture.map(configuration, &map)
    self.map = map
  }

  static func architecture(
    of family: any CheckpointFamily.Type
  ) -> (any GGUFArchitecture.Type)? {
    GGUFModel.architectures.first { a in
      a.families.contains { ObjectIdentifier($0) == ObjectIdentifier(family) }
    }
  }

  static var known: [String] { GGUFModel.architectures.flatMap { $0.families.map { $0.name } } }

  /// Writes the file.
  ///
  /// - Parameters:
  ///   - type: of matrices; vectors, convolutions and small maps of the recurrences stay float32 as
  ///     the format's other readers expect. Without it matrices keep their type.
  ///   - tokenizer: the metadata that hold the tokenizer.
  func write(
    to path: String, name: String, type: BlockType?, tokenizer: [(String, GGUFValue)]
  ) throws(ModelFolderError) {
    var writer: GGUFWriter
    do throws(ConfigurationError) {
      writer = GGUFWriter(architecture: architecture.names[0])
      writer.set("general.name", .string(name))
      for (key, value) in try architecture.metadata(configuration) {
        writer.set("\(architecture.names[0]).\(key)", value)
      }
      let vocabulary = try configuration.vocabulary(default: 0)
      for (key, value) in tokenizer { writer.set(key, Self.padded(key, value, vocabulary)) }
    } catch { throw .configuration(file: path, error) }
    if let code = type?.fileType { writer.set("general.file_type", .integer(code)) }
    writer.set("general.quantization_version", .integer(2))
    do throws(CheckpointError) {
      try add(to: &writer, type)
      try writer.write(to: path)
    } catch { throw .checkpoint(error) }
  }

  /// Readers expect a token for each row of the embedding; those without one are marked as unused.
  private static func padded(_ key: String, _ value: GGUFValue, _ count: Int) -> GGUFValue {
    guard case .array(let given) = value, given.count < count else { return value }
    switch key {
    case "tokenizer.ggml.tokens":
      return .array(given + (given.count..<count).map { .string("[PAD\($0)]") })
    case "tokenizer.ggml.token_type":
      return .array(given + Array(repeating: .integer(5), count: count - given.count))
    default: return value
    }
  }

  /// One row of the public tensors for each row of a tensor of the file.
  private struct Piece {
    var theirs: String
    var part: GGUFMap.Part
    var change: GGUFMap.Change
  }

  private func add(to writer: inout GGUFWriter, _ type: BlockType?) throws(CheckpointError) {
    let tied = (try? configuration.bool("tie_word_embeddings", default: false)) ?? false
    var order: [String] = []
    var pieces: [String: [Piece]] = [:]
    var used: Set<String> = []
    for theirs in map.order {
      guard let rule = map.rules[theirs], source.contains(theirs) else { continue }
      used.insert(theirs)
      if tied, rule.parts.first?.name == "output.weight" { continue }
      for part in rule.parts {
        if pieces[part.name] == nil { order.append(part.name) }
        pieces[part.name, default: []].append(
          Piece(theirs: theirs, part: part, change: rule.change))
      }
    }
    let unexpected = source.names.filter { !used.contains($0) && !isUnneeded($0) }
    guard unexpected.isEmpty else {
      throw .mismatch(missing: [], unexpected: unexpected, reshaped: [])
    }
    for name in order {
      guard let parts = pieces[name] else { continue }
      try add(name, as: name, parts, type, to: &writer)
    }
    for (name, from) in map.fillers.sorted(by: { $0.key < $1.key }) {
      guard let parts = pieces[from] else { continue }
      try add(name, as: from, parts, type, to: &writer)
    }
  }

  /// Tensors that public folders may hold and nobody reads.
  private func isUnneeded(_ name: String) -> Bool {
    guard
      let family = architecture.families.first(where: {
        $0.recognizes(configuration, tensorNames: [])
      }), let plan = try? family.plan(configuration)
    else { return false }
    return plan.tensors.ignores(name)
  }

  private func add(
    _ name: String, as key: String, _ parts: [Piece], _ wanted: BlockType?,
    to writer: inout GGUFWriter
  ) throws(CheckpointError) {
    guard let first = parts.first else { return }
    let info = try source.info(first.theirs)
    let shape: Shape
    if let stored = map.stored[key] {
      shape = stored
    } else if case .range = first.part.rows {
      throw .invalid(subject: "tensor '\(name)'", reason: "its shape is not known")
    } else {
      shape = info.shape
    }
    let type = try storedType(key, shape, info, wanted)
    let (source, rules) = (source, map.rules)
    try writer.add(name, type: type, shape: shape) { (sink) throws(CheckpointError) in
      let count = type.byteCount(of: shape) ?? 0
      let rows = shape.rank < 2 ? shape.elementCount : shape.elementCount / max(shape.last, 1)
      if parts.count == 1, case .all = first.part.rows {
        try sink.write(Self.bytes(first, type, source))
        return
      }
      let size = count / max(rows, 1)
      var out = [UInt8](repeating: 0, count: count)
      var filled = 0
      var done: Set<String> = []
      for piece in parts where done.insert(piece.theirs).inserted {
        // A public tensor's rows are those of its parts in order; some may be of other tensors.
        let bytes = try Self.bytes(piece, type, source)
        var row = 0
        for part in rules[piece.theirs]?.parts ?? [] {
          part.forEach(of: rows) { place in
            defer { row += 1 }
            guard part.name == key, place < rows, (row + 1) * size <= bytes.count else { return }
            out.replaceSubrange(
              place * size..<(place + 1) * size, with: bytes[row * size..<(row + 1) * size])
            filled += 1
          }
        }
      }
      guard filled == rows else {
        throw .mismatch(
          missing: ["\(rows - filled) rows of \(name)"], unexpected: [], reshaped: [])
      }
      try sink.write(out)
    }
  }

  /// A public tensor's bytes in the file's type and order of elements.
  private static func bytes(
    _ piece: Piece, _ type: BlockType, _ source: any TensorSource
  ) throws(CheckpointError) -> [UInt8] {
    if case .none = piece.change, try source.info(piece.theirs).blockType == type {
      return try source.withBytes(piece.theirs) { Array($0) }
    }
    var values = try source.readFloat32(piece.theirs)
    switch piece.change {
    case .none: break
    case .values(_, let write): values = values.map(write)
    case .elements(let order):
      guard order.count == values.count else {
        throw .invalid(
          subject: "tensor '\(piece.theirs)'",
          reason: "\(values.count) elements, \(order.count) are due")
      }
      var moved = values
      for (i, place) in order.enumerated() { moved[place] = values[i] }
      values = moved
    }
    return values.withUnsafeBufferPointer { type.pack($0) }
  }

  /// Matrices take the wanted type where their rows are whole blocks, else the nearest one that fits.
  private func storedType(
    _ name: String, _ shape: Shape, _ info: TensorInfo, _ wanted: BlockType?
  ) throws(CheckpointError) -> BlockType {
    guard let given = info.blockType, given.isFloat else {
      throw .unsupported(
        file: info.file, subject: "tensor '\(info.name)' in a GGUF file",
        reason: "it is \(info.typeName)")
    }
    let kept =
      ["norm", "ssm_conv1d", "ssm_a", "ssm_d", "lerp", "time_mix_first", "ffn_gate_inp"]
      + ["w0", "w1", "w2", "a0", "a1", "a2", "v0", "v1", "v2", "g1", "g2", "decay"].map {
        "time_mix_\($0)"
      }
    guard shape.rank >= 2, !kept.contains(where: name.contains) else { return .float32 }
    var type = wanted ?? (given == .float64 ? .float32 : given)
    if shape.last % type.valuesPerBlock != 0 { type = .q8_0 }
    if shape.last % type.valuesPerBlock != 0 { type = .float16 }
    return type
  }
}

extension BlockType {
  /// The number by which files say what most of their matrices are.
  fileprivate var fileType: Int? {
    switch self {
    case .float32: 0
    case .float16: 1
    case .q4_0: 2
    case .q4_1: 3
    case .q8_0: 7
    case .q5_0: 8
    case .q5_1: 9
    case .q4_K: 14
    case .q5_K: 16
    case .q6_K: 18
    case .bfloat16: 32
    default: nil
    }
  }
}

extension ModelFolder {
  /// Writes the folder's model as one GGUF file.
  ///
  /// - Parameters:
  ///   - type: of matrices; nil: as they are.
  ///   - tokenizer: `tokenizer.*` metadata.
  /// - Throws: a model that GGUF files cannot hold, and failures of reading and writing.
  /// - Returns: the name of the layout that the file holds.
  @discardableResult
  public func writeGGUF(
    to path: String, type: BlockType? = nil, tokenizer: [(String, GGUFValue)] = []
  ) throws(ModelFolderError) -> String {
    let family: String
    let export: GGUFExport
    do throws(ConfigurationError) {
      let layout = try publicLayout { GGUFExport.architecture(of: $0) != nil }
      family = layout.family.name
      export = try GGUFExport(
        family: layout.family, configuration: ForeignConfiguration(json: Array(layout.text.utf8)),
        source: layout.tensors)
    } catch { throw .configuration(file: file, error) }
    let name = self.path.split(separator: "/").last.map(String.init) ?? "model"
    try export.write(to: path, name: name, type: type, tokenizer: tokenizer)
    return family
  }
}
