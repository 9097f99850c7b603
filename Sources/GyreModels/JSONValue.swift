import FoundationEssentials
import GyreLayers

/// Any JSON value: options of mixers travel as this until the mixer's type decodes them.
public enum JSONValue: Codable, Hashable, Sendable {
  case null
  case bool(Bool)
  case integer(Int)
  case number(Double)
  case string(String)
  case array([JSONValue])
  case object([String: JSONValue])

  public init(from decoder: any Decoder) throws {
    let c = try decoder.singleValueContainer()
    if c.decodeNil() {
      self = .null
    } else if let v = try? c.decode(Bool.self) {
      self = .bool(v)
    } else if let v = try? c.decode(Int.self) {
      self = .integer(v)
    } else if let v = try? c.decode(Double.self) {
      self = .number(v)
    } else if let v = try? c.decode(String.self) {
      self = .string(v)
    } else if let v = try? c.decode([JSONValue].self) {
      self = .array(v)
    } else {
      self = .object(try c.decode([String: JSONValue].self))
    }
  }

  public func encode(to encoder: any Encoder) throws {
    var c = encoder.singleValueContainer()
    switch self {
    case .null: try c.encodeNil()
    case .bool(let v): try c.encode(v)
    case .integer(let v): try c.encode(v)
    case .number(let v): try c.encode(v)
    case .string(let v): try c.encode(v)
    case .array(let v): try c.encode(v)
    case .object(let v): try c.encode(v)
    }
  }

  /// The members of an object; nil for other values.
  public var members: [String: JSONValue]? {
    if case .object(let v) = self { return v }
    return nil
  }

  public var text: String? {
    if case .string(let v) = self { return v }
    return nil
  }

  /// Numbers so large that sizes made of them would overflow belong in no option.
  ///
  /// - Throws: the path of the first integer beyond 2²⁰ or number beyond 10¹².
  func requireModest(at path: String) throws(ConfigurationError) {
    switch self {
    case .integer(let v):
      try require((-1 << 20...1 << 20).contains(v), path, "must be at most 1048576, is \(v)")
    case .number(let v): try require(abs(v) <= 1e12, path, "must be at most 1e12, is \(v)")
    case .array(let values):
      for (i, value) in values.enumerated() { try value.requireModest(at: "\(path)[\(i)]") }
    case .object(let members):
      for key in members.keys.sorted() { try members[key]?.requireModest(at: "\(path).\(key)") }
    case .null, .bool, .string: break
    }
  }

  /// The JSON of any encodable value.
  public init(encoding value: some Encodable) throws {
    self = try JSONDecoder().decode(JSONValue.self, from: JSONEncoder().encode(value))
  }

  /// A value of `T` from this JSON.
  public func decoded<T: Decodable>(as _: T.Type) throws -> T {
    try JSONDecoder().decode(T.self, from: JSONEncoder().encode(self))
  }
}

extension DecodingError {
  /// The path and the reason in a few words.
  package var place: (path: String, reason: String) {
    func path(_ context: DecodingError.Context, _ last: String? = nil) -> String {
      (context.codingPath.map(\.stringValue) + (last.map { [$0] } ?? [])).joined(separator: ".")
    }
    switch self {
    case .keyNotFound(let key, let context): return (path(context, key.stringValue), "is missing")
    case .typeMismatch(let type, let context): return (path(context), "must be a \(type)")
    case .valueNotFound(let type, let context): return (path(context), "must be a \(type), is null")
    case .dataCorrupted(let context): return (path(context), context.debugDescription)
    @unknown default: return ("", "cannot be decoded")
    }
  }
}
