import FoundationEssentials
import GyreLayers
import GyreTensors

/// A `config.json` of another library. Typed reads name the field in their errors; null counts as
/// absent.
public struct ForeignConfiguration: Sendable, Hashable {
  public let value: JSONValue
  /// Where the object lies in the file, for errors: "rope_parameters".
  public let path: String
  /// Shapes of the tensors beside the file, for layouts whose configuration leaves sizes out.
  public var stored: [String: Shape] = [:]

  public init(_ value: JSONValue, path: String = "") {
    self.value = value
    self.path = path
  }

  /// Reads the file's text. Python's `Infinity` and `NaN` are understood.
  ///
  /// - Throws: when it is not a JSON object.
  public init(json: [UInt8]) throws(ConfigurationError) {
    let value = try JSONValue(text: json)
    guard value.members != nil else { throw ConfigurationError("config", "must be an object") }
    self.init(value)
  }

  /// The largest integer that fields may hold: products of a few of them do not overflow.
  public static let largest = 1 << 20

  /// The value of a field; nil where it is absent or null.
  public subscript(key: String) -> JSONValue? {
    guard let found = value.members?[key], found != .null else { return nil }
    return found
  }

  /// Whether a field is there and not null.
  public func has(_ key: String) -> Bool { self[key] != nil }

  public func int(
    _ key: String, default fallback: Int? = nil, in range: ClosedRange<Int> = 0...largest
  ) throws(ConfigurationError) -> Int {
    guard let found = self[key] else { return try absent(key, fallback) }
    guard let number = found.wholeNumber, range.contains(number) else {
      throw wrong(key, "must be an integer in \(range.lowerBound)...\(range.upperBound)", found)
    }
    return number
  }

  /// A positive integer.
  public func count(_ key: String, default fallback: Int? = nil) throws(ConfigurationError) -> Int {
    try int(key, default: fallback, in: 1...Self.largest)
  }

  /// A finite number.
  public func double(_ key: String, default fallback: Double? = nil) throws(ConfigurationError)
    -> Double
  {
    guard let found = self[key] else { return try absent(key, fallback) }
    guard let number = found.anyNumber, number.isFinite else {
      throw wrong(key, "must be a finite number", found)
    }
    return number
  }

  public func bool(_ key: String, default fallback: Bool? = nil) throws(ConfigurationError) -> Bool
  {
    guard let found = self[key] else { return try absent(key, fallback) }
    guard case .bool(let flag) = found else { throw wrong(key, "must be true or false", found) }
    return flag
  }

  public func string(_ key: String, default fallback: String? = nil) throws(ConfigurationError)
    -> String
  {
    guard let found = self[key] else { return try absent(key, fallback) }
    guard let text = found.text else { throw wrong(key, "must be a string", found) }
    return text
  }

  public func ints(_ key: String, default fallback: [Int]? = nil) throws(ConfigurationError)
    -> [Int]
  {
    guard let found = self[key] else { return try absent(key, fallback) }
    guard case .array(let items) = found, items.count <= Self.largest else {
      throw wrong(key, "must be a list of integers", found)
    }
    var numbers: [Int] = []
    for item in items {
      guard let number = item.wholeNumber, abs(number) <= Self.largest else {
        throw wrong(key, "must be a list of integers up to \(Self.largest)", found)
      }
      numbers.append(number)
    }
    return numbers
  }

  /// Numbers, infinite ones included.
  public func doubles(_ key: String, default fallback: [Double]? = nil) throws(ConfigurationError)
    -> [Double]
  {
    guard let found = self[key] else { return try absent(key, fallback) }
    guard case .array(let items) = found, items.count <= Self.largest else {
      throw wrong(key, "must be a list of numbers", found)
    }
    let numbers = items.compactMap(\.anyNumber)
    guard numbers.count == items.count else { throw wrong(key, "must be a list of numbers", found) }
    return numbers
  }

  public func strings(_ key: String, default fallback: [String]? = nil) throws(ConfigurationError)
    -> [String]
  {
    guard let found = self[key] else { return try absent(key, fallback) }
    guard case .array(let items) = found, items.count <= Self.largest else {
      throw wrong(key, "must be a list of strings", found)
    }
    let texts = items.compactMap(\.text)
    guard texts.count == items.count else { throw wrong(key, "must be a list of strings", found) }
    return texts
  }

  /// The object in a field; nil where it is absent, null or no object.
  public func object(_ key: String) -> ForeignConfiguration? {
    guard let found = self[key], found.members != nil else { return nil }
    return ForeignConfiguration(found, path: place(key))
  }

  /// A number of layers, at most 4096.
  public func layerCount(_ key: String, default fallback: Int? = nil) throws(ConfigurationError)
    -> Int
  {
    try int(key, default: fallback, in: 1...4096)
  }

  /// A vocabulary size, at most 2²⁴.
  public func vocabulary(_ key: String = "vocab_size", default fallback: Int? = nil)
    throws(ConfigurationError) -> Int
  {
    try int(key, default: fallback, in: 1...1 << 24)
  }

  /// A model width, at most 2¹⁷.
  public func width(_ key: String = "hidden_size", default fallback: Int? = nil)
    throws(ConfigurationError) -> Int
  {
    try int(key, default: fallback, in: 1...1 << 17)
  }

  /// Our name of an activation function.
  ///
  /// - Throws: where it is not one of `known`.
  public func activation(
    _ key: String, default fallback: String? = nil,
    among known: [String] = ["silu", "gelu", "geluTanh", "relu", "sigmoid"]
  ) throws(ConfigurationError) -> String {
    let name = try string(key, default: fallback)
    let names = [
      "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_python": "gelu",
      "gelu_pytorch_tanh": "geluTanh", "gelu_new": "geluTanh", "gelu_fast": "geluTanh",
      "gelu_accurate": "geluTanh", "relu": "relu", "relu2": "reluSquared",
      "squared_relu": "reluSquared", "sqrelu": "reluSquared", "sigmoid": "sigmoid",
      "tanh": "tanh", "softplus": "softplus",
    ]
    guard let ours = names[name], known.contains(ours) else {
      let usable = names.filter { known.contains($0.value) }.keys.sorted()
      throw ConfigurationError(place(key), "must be one of \(usable), is \"\(name.prefix(40))\"")
    }
    return ours
  }

  /// - Throws: with the field's place unless `condition` holds.
  public func require(
    _ condition: Bool, _ key: String, _ reason: @autoclosure () -> String
  ) throws(ConfigurationError) {
    if !condition { throw ConfigurationError(place(key), reason()) }
  }

  /// The field's full name in the file.
  public func place(_ key: String) -> String { path.isEmpty ? key : path + "." + key }

  private func absent<T>(_ key: String, _ fallback: T?) throws(ConfigurationError) -> T {
    guard let fallback else { throw ConfigurationError(place(key), "is missing") }
    return fallback
  }

  private func wrong(_ key: String, _ rule: String, _ found: JSONValue) -> ConfigurationError {
    ConfigurationError(place(key), "\(rule), is \(found.summary)")
  }
}

extension JSONValue {
  /// Parses JSON text. Python's `Infinity`, `-Infinity` and `NaN` become numbers.
  ///
  /// - Throws: when the text is not JSON.
  public init(text: [UInt8]) throws(ConfigurationError) {
    let limit = 1 << 26
    guard text.count <= limit else {
      throw ConfigurationError("config", "has \(text.count) bytes, more than \(limit)")
    }
    do {
      self = try JSONDecoder().decode(JSONValue.self, from: Data(Self.quotingNonFinite(text)))
    } catch { throw ConfigurationError("config", "is not JSON: \(error)") }
  }

  /// The marker that transformers writes for numbers that JSON lacks.
  private static let floatKey = "__float__"

  /// Numbers that are not JSON as objects that hold their name.
  private static func quotingNonFinite(_ text: [UInt8]) -> [UInt8] {
    var result: [UInt8] = []
    result.reserveCapacity(text.count)
    var inString = false
    var i = 0
    while i < text.count {
      let byte = text[i]
      if inString {
        result.append(byte)
        if byte == UInt8(ascii: "\\"), i + 1 < text.count {
          result.append(text[i + 1])
          i += 1
        } else if byte == UInt8(ascii: "\"") {
          inString = false
        }
        i += 1
        continue
      }
      var replaced = false
      for token in ["-Infinity", "Infinity", "NaN"] where text[i...].starts(with: token.utf8) {
        result += Array("{\"\(floatKey)\":\"\(token)\"}".utf8)
        i += token.utf8.count
        replaced = true
        break
      }
      if replaced { continue }
      if byte == UInt8(ascii: "\"") { inString = true }
      result.append(byte)
      i += 1
    }
    return result
  }

  /// An integer, also one written as 2.0.
  var wholeNumber: Int? {
    switch self {
    case .integer(let v): v
    case .number(let v): Int(exactly: v)
    default: nil
    }
  }

  /// A number, also one that JSON lacks.
  var anyNumber: Double? {
    switch self {
    case .integer(let v): Double(v)
    case .number(let v): v
    case .object(let members):
      switch members[Self.floatKey]?.text {
      case "Infinity": .infinity
      case "-Infinity": -.infinity
      case "NaN": .nan
      default: nil
      }
    default: nil
    }
  }

  /// The value in a few words.
  var summary: String {
    switch self {
    case .null: "null"
    case .bool(let v): "\(v)"
    case .integer(let v): "\(v)"
    case .number(let v): "\(v)"
    case .string(let v): "\"\(v.prefix(40))\""
    case .array(let v): "a list of \(v.count)"
    case .object: "an object"
    }
  }
}
