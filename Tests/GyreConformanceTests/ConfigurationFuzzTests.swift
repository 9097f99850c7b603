import FoundationEssentials
import GyreLayers
import GyreMixers
import GyreModels
import GyreTensors
import Testing

/// Configurations from strangers: a model that can be built, or an error that names a field.
@Suite struct ConfigurationFuzzTests {
  /// What a field may hold instead of what it should.
  static let intruders: [JSONValue] = [
    .integer(0), .integer(-1), .integer(1), .integer(3), .integer(1 << 40), .integer(.max),
    .integer(.min), .number(0.5), .number(-0.5), .number(1e300), .number(-1e300), .number(1e-300),
    .null, .bool(true), .string(""), .string("x"), .array([]), .array([.integer(.max)]),
    .object([:]), .object(["x": .integer(1)]),
  ]

  /// Every field of every mixer's options replaced by every intruder.
  @Test(arguments: MixerCatalog.mixers.map { $0.kind } + MixerCatalog.feedForwards.map { $0.kind })
  func options(_ kind: String) throws {
    let type = try #require(MixerCatalog.type(of: kind))
    for options in try encoded(type) {
      for key in options.keys.sorted() {
        for intruder in Self.intruders {
          var changed = options
          changed[key] = intruder
          build(configuration(kind, .object(changed)), "\(kind).\(key) = \(intruder)")
        }
      }
    }
  }

  @Test func fields() throws {
    let encoder = JSONEncoder()
    let start = try JSONDecoder().decode(
      JSONValue.self, from: encoder.encode(Presets.configuration("tiny")))
    let members = try #require(start.members)
    for key in members.keys.sorted() {
      for intruder in Self.intruders {
        var changed = members
        changed[key] = intruder
        build(.object(changed), "\(key) = \(intruder)")
      }
    }
  }

  /// Flipped bytes and truncations of the text.
  @Test func text() throws {
    let whole = Array(try Presets.configuration("rwkv7-10m").json().utf8)
    for count in stride(from: 0, to: whole.count, by: 7) { parse(Array(whole[..<count])) }
    let generator = CounterGenerator(seed: 5, name: "configuration")
    for i in 0..<400 {
      var bytes = whole
      for j in 0..<3 {
        let place = generator.integer(UInt64(6 * i + 2 * j), below: bytes.count)
        bytes[place] = UInt8(truncatingIfNeeded: generator.word(UInt64(6 * i + 2 * j + 1)))
      }
      parse(bytes)
    }
  }

  @Test func nesting() {
    for opening in ["[", "{\"mixers\":"] {
      let text = String(repeating: opening, count: 100_000)
      #expect(throws: ConfigurationError.self) { try ModelConfiguration(json: Array(text.utf8)) }
    }
  }

  // MARK: - Helpers

  private func encoded<M: SequenceMixer>(_: M.Type) throws -> [[String: JSONValue]] {
    try M.testConfigurations.compactMap {
      try JSONDecoder().decode(JSONValue.self, from: JSONEncoder().encode($0)).members
    }
  }

  private func configuration(_ kind: String, _ options: JSONValue) -> JSONValue {
    var fields: [String: JSONValue] = [
      "width": .integer(32), "layers": .integer(2), "vocabulary": .integer(16),
    ]
    if MixerCatalog.mixers.contains(where: { $0.kind == kind }) {
      fields["pattern"] = .array([.string(kind)])
      fields["mixers"] = .object([kind: options])
    } else {
      fields["feed_forward"] = .string(kind)
      fields["feed_forward_options"] = options
    }
    return .object(fields)
  }

  private func parse(_ bytes: [UInt8]) {
    do throws(ConfigurationError) { _ = try ModelConfiguration(json: bytes) } catch {
      #expect(!error.description.isEmpty)
    }
  }

  /// Builds the model where nothing is allocated; what stops it must say which field.
  private func build(_ value: JSONValue, _ what: String) {
    do throws(ConfigurationError) {
      let model = try LanguageModel(outline: try ModelConfiguration(value))
      #expect(model.parameterCount > 0, "\(what)")
    } catch { #expect(!error.path.isEmpty && !error.reason.isEmpty, "\(what): \(error)") }
  }
}
