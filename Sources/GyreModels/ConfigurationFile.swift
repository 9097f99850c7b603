import FoundationEssentials
import GyreLayers

/// Configurations as JSON text: read where it gives them in part, written whole.
public enum ConfigurationFile {
  /// The text of a file: sorted keys, indented, a line break at its end.
  public static func text(_ value: some Encodable) throws -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    return String(decoding: try encoder.encode(value), as: UTF8.self) + "\n"
  }

  /// Reads JSON text over defaults.
  ///
  /// - Parameter keys: all fields there are.
  /// - Throws: the path of the first field that is unknown or of the wrong type.
  public static func read<T: Codable>(
    _ json: [UInt8], over defaults: T, keys: [String]
  ) throws(ConfigurationError) -> T {
    do {
      let given = try JSONDecoder().decode(JSONValue.self, from: Data(json))
      guard let fields = given.members else { throw ConfigurationError("", "must be an object") }
      guard var all = try JSONValue(encoding: defaults).members else { return defaults }
      for (key, value) in fields.sorted(by: { $0.key < $1.key }) {
        try require(keys.contains(key), key, "is not a field; there are \(keys.sorted())")
        all[key] = value
      }
      return try JSONValue.object(all).decoded(as: T.self)
    } catch let error as ConfigurationError {
      throw error
    } catch let error as DecodingError {
      throw ConfigurationError(error.place.path, error.place.reason)
    } catch { throw ConfigurationError("", "is not JSON: \(error)") }
  }
}
