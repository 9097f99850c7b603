import GyreCheckpoints
import GyreModels
import GyreTensors
import GyreTokenizers

/// A model as a folder holds it (`config.json`, `model.safetensors` and the tokenizer) or as a GGUF
/// file does.
public enum StoredModel {
  public static let configurationFile = ModelFolder.configurationFile
  public static let weightsFile = "model.safetensors"

  /// The configuration of a folder in our layout or a public one.
  public static func configuration(folder: String) throws(InferenceError) -> ModelConfiguration {
    do throws(ModelFolderError) { return try ModelFolder.configuration(path: folder) } catch {
      throw .folder(error)
    }
  }

  /// The model of a folder in our layout or a public one, with its weights on `device`.
  ///
  /// - Parameters:
  ///   - matrices: how matrices are held.
  ///   - compatibility: faults of the original library's code to repeat.
  /// - Throws: what is missing, damaged or does not fit, with the file's name.
  public static func load(
    folder: String, device: any Device, matrices: MatrixStorage = .float32,
    compatibility: [Compatibility] = []
  ) throws(InferenceError) -> LanguageModel {
    do throws(ModelFolderError) {
      return try ModelFolder(path: folder, compatibility: compatibility)
        .load(on: device, matrices: matrices)
    } catch {
      throw .folder(error)
    }
  }

  /// The tokenizer of a folder or of a GGUF file.
  public static func tokenizer(folder: String) throws(InferenceError) -> any Tokenizer {
    if GGUFFile.isGGUF(path: folder) {
      let file: GGUFFile
      do throws(CheckpointError) { file = try GGUFFile(path: folder) } catch {
        throw .folder(.checkpoint(error))
      }
      do throws(TokenizerError) { return try GGUFTokenizer.load(file) } catch {
        throw .tokenizer(error)
      }
    }
    do throws(TokenizerError) { return try TokenizerFile.load(path: folder) } catch {
      throw .tokenizer(error)
    }
  }
}
