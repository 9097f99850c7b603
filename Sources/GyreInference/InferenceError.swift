import GyreModels
import GyreTensors
import GyreTokenizers

/// What goes wrong while a model is loaded or generates.
public enum InferenceError: Error, Sendable, CustomStringConvertible {
  case device(DeviceError)
  case folder(ModelFolderError)
  case tokenizer(TokenizerError)
  case invalidOption(name: String, rule: String)
  /// Every logit is NaN or −∞: the weights are damaged or training diverged.
  case noFiniteLogit
  /// The tokenizer makes tokens that the model does not know.
  case vocabulary(tokenizer: Int, model: Int)

  public var description: String {
    switch self {
    case .device(let error): error.description
    case .folder(let error): error.description
    case .tokenizer(let error): error.description
    case .invalidOption(let name, let rule): "\(name) \(rule)"
    case .noFiniteLogit:
      "the model gives no finite logit; its weights are damaged or its training diverged"
    case .vocabulary(let tokenizer, let model):
      "the tokenizer has \(tokenizer) tokens but the model knows \(model)"
    }
  }
}
