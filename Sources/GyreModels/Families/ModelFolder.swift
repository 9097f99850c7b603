import GyreCheckpoints
import GyreLayers
import GyreTensors

/// What is wrong with a model folder.
public enum ModelFolderError: Error, Sendable, CustomStringConvertible {
  case checkpoint(CheckpointError)
  case configuration(file: String, ConfigurationError)
  /// The tensors do not fit the configuration; the family whose names are nearest.
  case tensors(CheckpointError, family: String, nearest: String)

  public var description: String {
    switch self {
    case .checkpoint(let error): error.description
    case .configuration(let file, let error): "\(file): \(error)"
    case .tensors(let error, let family, let nearest):
      "\(error) (read as \(family)"
        + (family == nearest ? ")" : "; the names look most like \(nearest))")
    }
  }
}

/// A folder with `config.json` and weights, in our layout or a public one, or a GGUF file. Opening
/// reads headers only; weights stay in their mapped files.
public struct ModelFolder: Sendable {
  public static let configurationFile = "config.json"

  /// What the folder's own layout is.
  public enum Layout: Sendable {
    case gyre
    case family(any CheckpointFamily.Type, ForeignConfiguration)

    public var name: String {
      switch self {
      case .gyre: "gyre"
      case .family(let family, _): family.name
      }
    }
  }

  public let path: String
  /// The file that holds the configuration.
  let file: String
  public let layout: Layout
  public let configuration: ModelConfiguration
  /// Shapes of our parameters by name.
  public let shapes: [String: Shape]
  /// The tensors as they are stored; those of a GGUF file under the names of its public layout.
  public let stored: any TensorSource
  /// The same under our names and shapes.
  public let tensors: any TensorSource

  /// Opens a folder and compares names and shapes.
  ///
  /// - Parameter compatibility: faults of the original library's code to repeat.
  /// - Throws: what is missing, damaged or does not fit; all tensors at once.
  public init(
    path: String, compatibility: [Compatibility] = []
  ) throws(ModelFolderError) {
    self.path = path
    let opened = try Opened(path)
    (stored, file) = (opened.stored, opened.file)
    let names = Set(stored.names)
    let map: TensorMap?
    do throws(ConfigurationError) {
      var found: ModelConfiguration
      (found, layout, map) = try Self.resolve(opened.configuration, opened.extents)
      for fault in compatibility { try fault.apply(to: &found) }
      configuration = found
      shapes = try configuration.parameterShapes()
    } catch let error {
      throw .configuration(file: file, error)
    }
    do throws(CheckpointError) {
      if let map {
        tensors = try map.imported(stored, shapes: shapes)
      } else {
        try stored.check(against: shapes)
        tensors = stored
      }
    } catch {
      guard case .mismatch = error, case .family(let family, let config) = layout else {
        throw .checkpoint(error)
      }
      throw .tensors(
        error, family: family.name,
        nearest: FamilyCatalog.nearest(config, tensorNames: names).name)
    }
  }

  /// The configuration alone; in our layout it needs no weights.
  public static func configuration(path: String) throws(ModelFolderError) -> ModelConfiguration {
    let opened = try Opened(path, needsWeights: false)
    do throws(ConfigurationError) {
      return try resolve(opened.configuration, opened.extents).0
    } catch let error {
      throw .configuration(file: opened.file, error)
    }
  }

  /// What lies at a path, before anything is made of it.
  private struct Opened {
    let stored: any TensorSource
    /// The file that holds the configuration.
    let file: String
    let configuration: JSONValue
    let extents: [String: Shape]

    init(_ path: String, needsWeights: Bool = true) throws(ModelFolderError) {
      if GGUFFile.isGGUF(path: path) {
        let container: GGUFFile
        do throws(CheckpointError) { container = try GGUFFile(path: path) } catch {
          throw .checkpoint(error)
        }
        let model: GGUFModel
        do throws(ConfigurationError) { model = try GGUFModel(container) } catch {
          throw .configuration(file: path, error)
        }
        (stored, file, configuration) = (model.tensors, path, model.configuration)
        do throws(CheckpointError) { extents = try ModelFolder.extents(model.tensors) } catch {
          throw .checkpoint(error)
        }
        return
      }
      file = path + "/" + ModelFolder.configurationFile
      do throws(CheckpointError) {
        let folder: any TensorSource = try CheckpointFolder(path: path)
        (stored, extents) = (folder, try ModelFolder.extents(folder))
      } catch {
        if needsWeights { throw .checkpoint(error) }
        (stored, extents) = (MemoryTensors(), [:])
      }
      do throws(ConfigurationError) {
        configuration = try ModelFolder.read(file, Set(stored.names))
      } catch { throw .configuration(file: file, error) }
    }
  }

  private static func extents(
    _ stored: any TensorSource
  ) throws(CheckpointError) -> [String: Shape] {
    var result: [String: Shape] = [:]
    for name in stored.names { result[name] = try stored.info(name).shape }
    return result
  }

  /// The configuration; an empty one where there is no file and the tensors' names are enough.
  private static func read(
    _ file: String, _ names: Set<String>
  ) throws(ConfigurationError) -> JSONValue {
    let bytes: [UInt8]
    do throws(CheckpointError) {
      bytes = try MappedFile(path: file).withUnsafeBytes { Array($0) }
    } catch {
      let none = JSONValue.object([:])
      if case .notFound = error,
        FamilyCatalog.families.contains(where: {
          $0.recognizes(ForeignConfiguration(none), tensorNames: names)
        })
      {
        return none
      }
      throw ConfigurationError("", error.description)
    }
    return try JSONValue(text: bytes)
  }

  private static func resolve(
    _ value: JSONValue, _ stored: [String: Shape]
  ) throws(ConfigurationError) -> (ModelConfiguration, Layout, TensorMap?) {
    guard let members = value.members else { throw ConfigurationError("", "must be an object") }
    if members["pattern"] != nil, members["model_type"] == nil {
      return (try ModelConfiguration(value), .gyre, nil)
    }
    var config = ForeignConfiguration(value)
    config.stored = stored
    let family = try FamilyCatalog.family(config, tensorNames: Set(stored.keys))
    let plan = try family.plan(config)
    try plan.model.validate()
    return (plan.model, .family(family, config), plan.tensors)
  }

  /// Whether the model is one GGUF file.
  public var isGGUF: Bool { file == path }

  /// The model with its weights on a device.
  ///
  /// - Parameters:
  ///   - copies: whether values get memory of their own; see `CheckpointParameters`.
  ///   - matrices: how matrices are held; other than in float32 for inference only.
  public func load(
    on device: any Device, copies: Bool = false, matrices: MatrixStorage = .float32
  ) throws(ModelFolderError) -> LanguageModel {
    let source = CheckpointParameters(
      tensors, device: device, copies: copies, matrices: matrices)
    let model: LanguageModel
    do throws(ConfigurationError) {
      model = try LanguageModel(configuration, source: source, device: device)
    } catch { throw .configuration(file: file, error) }
    do throws(CheckpointError) { try source.finish() } catch { throw .checkpoint(error) }
    return model
  }
}

extension ModelConfiguration {
  /// Shapes of all parameters by name, without making any.
  ///
  /// - Throws: the field that cannot be built.
  public func parameterShapes() throws(ConfigurationError) -> [String: Shape] {
    Dictionary(
      try LanguageModel(outline: self).parameters.map { ($0.name, $0.shape) },
      uniquingKeysWith: { first, _ in first })
  }
}
