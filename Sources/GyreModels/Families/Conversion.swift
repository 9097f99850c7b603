import FoundationEssentials
import GyreCheckpoints
import GyreLayers
import GyreTensors

/// Which layout a converted folder gets.
public enum TargetLayout: String, Sendable, Hashable, CaseIterable {
  /// Ours.
  case gyre
  /// The public layout of the model's architecture, as Hugging Face folders have it.
  case hf
}

/// Element types of stored weights.
public enum WeightType: String, Sendable, Hashable, CaseIterable {
  case f32, bf16, f16

  var stored: StoredType {
    switch self {
    case .f32: .float32
    case .bf16: .bfloat16
    case .f16: .float16
    }
  }
  /// As transformers spells it.
  var publicName: String {
    switch self {
    case .f32: "float32"
    case .bf16: "bfloat16"
    case .f16: "float16"
    }
  }
}

extension ModelFolder {
  /// Writes the folder's model into another folder: `config.json`, `model.safetensors`, and the
  /// tokenizer's files as they are. Without `type` every element keeps its bits.
  ///
  /// - Throws: where the layout cannot express the model, and failures of reading and writing.
  /// - Returns: the name of the layout that was written.
  @discardableResult
  public func convert(
    to folder: String, layout target: TargetLayout, type: WeightType? = nil
  ) throws(ModelFolderError) -> String {
    var written: any TensorSource = tensors
    var text: String
    var name = "gyre"
    do throws(ConfigurationError) {
      switch (target, layout) {
      case (.gyre, .gyre):
        text = try Self.json(configuration)
      case (.gyre, .family(let family, _)) where !family.hasConfiguration:
        text = try Self.json(configuration)
      case (.gyre, .family):
        var model = configuration
        model.origin = try originalText()
        text = try Self.json(model)
      case (.hf, _):
        let layout = try publicLayout { $0.hasConfiguration }
        (text, written, name) = (layout.text, layout.tensors, layout.family.name)
      }
    } catch { throw .configuration(file: file, error) }
    if let type, target == .hf { text = Self.renaming(text, type: type) }
    do throws(CheckpointError) {
      try CheckpointFiles.createFolder(folder)
      var metadata = written.metadata
      if target == .hf { metadata["format"] = "pt" }
      var writer = SafetensorsWriter(metadata: metadata)
      for name in written.names { try writer.add(name, from: written, type: type?.stored) }
      try writer.write(to: folder + "/model.safetensors")
      let others = isGGUF ? [] : try CheckpointFiles.names(path)
      for other in others where Self.travels(other) {
        let bytes = try MappedFile(path: path + "/" + other).withUnsafeBytes { Array($0) }
        try AtomicFile.write(bytes, to: folder + "/" + other)
      }
      try AtomicFile.write(text, to: folder + "/" + Self.configurationFile)
    } catch { throw .checkpoint(error) }
    return name
  }

  /// The model in a public layout: the folder's own where that will do, else the one that its
  /// configuration has.
  func publicLayout(
    _ isFine: (any CheckpointFamily.Type) -> Bool
  ) throws(ConfigurationError) -> (
    family: any CheckpointFamily.Type, text: String, tensors: any TensorSource
  ) {
    if case .family(let family, _) = layout, isFine(family) {
      return (family, try originalText(), stored)
    }
    let layout = try PublicLayout(of: configuration)
    do throws(CheckpointError) {
      return (
        layout.family, layout.configuration,
        try layout.tensors.exported(tensors, shapes: shapes)
      )
    } catch { throw ConfigurationError("tensors", error.description) }
  }

  private static func json(_ model: ModelConfiguration) throws(ConfigurationError) -> String {
    do { return try model.json() } catch { throw ConfigurationError("config", "\(error)") }
  }

  /// The public `config.json`: the file's text, or what a GGUF file's metadata mean.
  private func originalText() throws(ConfigurationError) -> String {
    guard isGGUF, case .family(_, let config) = layout else { return try Self.text(file) }
    do { return try ConfigurationFile.text(config.value) } catch {
      throw ConfigurationError("config", "\(error)")
    }
  }

  private static func text(_ file: String) throws(ConfigurationError) -> String {
    do throws(CheckpointError) {
      return try MappedFile(path: file).withUnsafeBytes { String(decoding: $0, as: UTF8.self) }
    } catch { throw ConfigurationError("config", error.description) }
  }

  /// Whether a file belongs to a model whatever its layout: tokenizers and what generation reads.
  private static func travels(_ name: String) -> Bool {
    let exact: Set = [
      "special_tokens_map.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json",
      "generation_config.json", "spiece.model", "LICENSE",
    ]
    return exact.contains(name) || name.hasPrefix("tokenizer") || name.hasPrefix("chat_template")
      || name.hasPrefix("rwkv_vocab") || name.hasSuffix(".tiktoken")
  }

  /// The text with the element type's name changed where it holds one.
  private static func renaming(_ text: String, type: WeightType) -> String {
    var text = text
    for key in ["dtype", "torch_dtype"] {
      for old in WeightType.allCases {
        for space in ["", " "] {
          text = text.replacing(
            "\"\(key)\":\(space)\"\(old.publicName)\"",
            with: "\"\(key)\":\(space)\"\(type.publicName)\"")
        }
      }
    }
    return text
  }
}

extension SafetensorsWriter {
  /// Adds a tensor of a source, its float elements in another type where one is given.
  mutating func add(
    _ name: String, from source: any TensorSource, type: StoredType?
  ) throws(CheckpointError) {
    let info = try source.info(name)
    let floats: Set<StoredType> = [.float32, .bfloat16, .float16, .float64]
    // Quantised tensors become float32 where nothing else is asked for.
    let isQuantized = info.blockType?.isQuantized ?? false
    guard let type = type ?? (isQuantized ? .float32 : nil), info.storedType != type,
      isQuantized || info.storedType.map(floats.contains) ?? false
    else {
      try add(name, from: source)
      return
    }
    try add(name, type: type, shape: info.shape) { (sink) throws(CheckpointError) in
      let values = try source.readFloat32(name)
      switch type {
      case .bfloat16: try sink.write(values.map(BFloat16.bits))
      case .float16: try sink.write(values.map(Half.bits))
      default: try sink.write(values)
      }
    }
  }
}
