import GyreCheckpoints
import GyreLayers
import GyreModels
import GyreTensors
import GyreTokenizers

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
    let source: CheckpointParameters
    do throws(CheckpointError) {
      source = CheckpointParameters(
        try SafetensorsFile(path: folder + "/" + weightsFile), device: device, copies: false)
    } catch { throw .checkpoint(error) }
    let model: LanguageModel
    do throws(ConfigurationError) {
      model = try LanguageModel(configuration, source: source, device: device)
    } catch { throw .configuration(file: folder + "/" + configurationFile, error) }
    do throws(CheckpointError) { try source.finish() } catch { throw .checkpoint(error) }
    return model
  }

  /// The tokenizer of a folder.
  public static func tokenizer(folder: String) throws(InferenceError) -> any Tokenizer {
    do throws(TokenizerError) { return try TokenizerFile.load(path: folder) } catch {
      throw .tokenizer(error)
    }
  }
}
