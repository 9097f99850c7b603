/// A configuration that cannot be built: which field, what it holds, what it must be.
public struct ConfigurationError: Error, Sendable, Equatable, CustomStringConvertible {
  public var path: String
  public var reason: String
  public init(_ path: String, _ reason: String) {
    self.path = path
    self.reason = reason
  }
  public var description: String { path.isEmpty ? reason : "\(path): \(reason)" }

  /// The same error below a field.
  public func under(_ prefix: String) -> ConfigurationError {
    ConfigurationError(path.isEmpty ? prefix : prefix + "." + path, reason)
  }
}

/// Throws unless `condition` holds.
public func require(
  _ condition: Bool, _ path: String, _ reason: @autoclosure () -> String
) throws(ConfigurationError) {
  if !condition { throw ConfigurationError(path, reason()) }
}

/// - Throws: a field whose value is outside what it may be.
public func require<Value: Comparable>(
  _ value: Value, _ field: some CodingKey, in range: ClosedRange<Value>
) throws(ConfigurationError) {
  try require(range.contains(value), field.stringValue, "must be in \(range), is \(value)")
}
