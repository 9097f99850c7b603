import GyreCheckpoints
import GyreLayers
import GyreModels
import GyreTensors
import GyreTokenizers

/// Parameters from a checkpoint: what is missing becomes zeros, and `check` names it.
public final class StoredParameters: ParameterSource {
  private let tensors: any TensorSource
  private let device: any Device
  private var expected: [String: Shape] = [:]
  private var failure: CheckpointError?

  public init(_ tensors: any TensorSource, device: any Device) {
    self.tensors = tensors
    self.device = device
  }

  public func value(name: String, shape: Shape, initializer: Initializer) -> Tensor? {
    expected[name] = shape
    do throws(CheckpointError) {
      guard tensors.contains(name) else { return nil }
      let info = try tensors.info(name)
      guard info.shape == shape else { return nil }
      if info.dtype == .float32 {
        return try tensors.withBytes(name) { (bytes) throws(CheckpointError) in
          Tensor(bytes: bytes, spec: TensorSpec(shape), on: device)
        }
      }
      return Tensor(try tensors.readFloat32(name), shape: shape, on: device)
    } catch {
      if failure == nil { failure = error }
      return nil
    }
  }

  /// - Throws: the first read that failed, or all names and shapes that disagree in one error.
  public func check() throws(CheckpointError) {
    if let failure { throw failure }
    try tensors.check(against: expected)
  }
}

/// A model as a folder holds it: `config.json`, `model.safetensors` and the tokenizer.
public enum StoredModel {
  public static let configurationFile = "config.json"
  public static let weightsFile = "model.safetensors"

  /// The configuration of a folder.
  public static func configuration(folder: String) throws(InferenceError) -> ModelConfiguration {
    let path = folder + "/" + configurationFile
    let bytes: [UInt8]
    do throws(CheckpointError) {
      bytes = try MappedFile(path: path).withUnsafeBytes { Array($0) }
    } catch { throw .checkpoint(error) }
    do throws(ConfigurationError) { return try ModelConfiguration(json: bytes) } catch {
      throw .configuration(file: path, error)
    }
  }

  /// The model of a folder with its weights on `device`.
  ///
  /// - Throws: what is missing, damaged or does not fit, with the file's name.
  public static func load(
    folder: String, device: any Device
  ) throws(InferenceError) -> LanguageModel {
    let configuration = try configuration(folder: folder)
    let source: StoredParameters
    do throws(CheckpointError) {
      source = StoredParameters(try CheckpointFolder(path: folder), device: device)
    } catch { throw .checkpoint(error) }
    let model: LanguageModel
    do throws(ConfigurationError) {
      model = try LanguageModel(configuration, source: source, device: device)
    } catch { throw .configuration(file: folder + "/" + configurationFile, error) }
    do throws(CheckpointError) { try source.check() } catch { throw .checkpoint(error) }
    return model
  }

  /// The tokenizer of a folder.
  public static func tokenizer(folder: String) throws(InferenceError) -> any Tokenizer {
    do throws(TokenizerError) { return try TokenizerFile.load(path: folder) } catch {
      throw .tokenizer(error)
    }
  }
}
