/// What can be wrong with a tokenizer file, and where.
public enum TokenizerError: Error, Sendable, Equatable {
  /// The file or folder does not exist or holds no tokenizer.
  case notFound(path: String)
  /// Reading or writing failed in the operating system.
  case io(operation: String, path: String, errno: Int32)
  /// The bytes are not the format they should be; `offset` counts bytes from the start.
  case malformed(file: String, offset: Int, reason: String)
  /// The format is right but a value is not; `place` is a path such as `model.merges[17]`, or a line.
  case invalid(file: String, place: String, reason: String)
  /// The file asks for a component that is not implemented.
  case unsupported(file: String, place: String, feature: String)
  /// No token has this number.
  case unknownToken(TokenID)
}

extension TokenizerError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .notFound(let path):
      "\(path): no tokenizer here; expected tokenizer.json, an RWKV vocabulary or \(ByteTokenizer.fileName)"
    case .io(let operation, let path, let errno):
      "\(path): \(operation) failed (errno \(errno)); check the path and its permissions"
    case .malformed(let file, let offset, let reason):
      "\(file): byte \(offset): \(reason); the file is damaged or not a tokenizer"
    case .invalid(let file, let place, let reason):
      "\(file): \(place): \(reason)"
    case .unsupported(let file, let place, let feature):
      "\(file): \(place): \(feature) is not supported"
    case .unknownToken(let token):
      "token \(token) is not in the vocabulary"
    }
  }
}
