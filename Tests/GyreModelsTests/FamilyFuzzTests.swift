import Foundation
import GyreLayers
import GyreModels
import GyreTensors
import Testing

/// Public configurations from strangers: a plan whose parameters and tensors agree, or an error that
/// names a field. Nothing is allocated.
@Suite struct FamilyFuzzTests {
  static let files: [String] = {
    let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
      .appendingPathComponent("Fixtures/configurations").path
    let names = (try? FileManager.default.contentsOfDirectory(atPath: root)) ?? []
    return names.sorted().map { root + "/" + $0 }
  }()

  /// What a field may hold instead of what it should.
  static let intruders: [JSONValue] = [
    .integer(0), .integer(-1), .integer(1), .integer(3), .integer(7), .integer(1 << 20),
    .integer(1 << 40), .integer(.max), .integer(.min), .number(0.5), .number(-0.5), .number(1e300),
    .number(-1e300), .number(1e-300), .null, .bool(true), .bool(false), .string(""),
    .string("linear"), .array([]), .array([.integer(.max)]), .array([.integer(0), .string("x")]),
    .object([:]), .object(["x": .integer(1)]), .object(["__float__": .string("Infinity")]),
    .object(["__float__": .string("NaN")]),
  ]

  private func read(_ path: String) throws -> [UInt8] {
    Array(try Data(contentsOf: URL(fileURLWithPath: path)))
  }

  @Test(arguments: files)
  func everyFieldByEveryIntruder(_ path: String) throws {
    let start = try JSONValue(text: read(path))
    try #require(plans(start, "unchanged"))
    // A sixth of the pairs: every intruder still meets every field in some file.
    let offset = path.utf8.reduce(0) { $0 + Int($1) }
    for (i, place) in Self.places(start).enumerated() {
      for (j, intruder) in Self.intruders.enumerated() where (offset + i + j) % 6 == 0 {
        _ = plans(Self.replacing(start, place, intruder), "\(path) \(place) = \(intruder)")
      }
      _ = plans(Self.replacing(start, place, nil), "\(path) without \(place)")
    }
  }

  /// Flipped bytes and truncations of the text.
  @Test(arguments: files)
  func text(_ path: String) throws {
    let whole = try read(path)
    for count in stride(from: 0, to: whole.count, by: 37) { parse(Array(whole[..<count])) }
    let generator = CounterGenerator(seed: 7, name: path)
    for i in 0..<60 {
      var bytes = whole
      for j in 0..<3 {
        let place = generator.integer(UInt64(6 * i + 2 * j), below: bytes.count)
        bytes[place] = UInt8(truncatingIfNeeded: generator.word(UInt64(6 * i + 2 * j + 1)))
      }
      parse(bytes)
    }
  }

  @Test func nonFiniteNumbers() throws {
    let text = #"{"a": Infinity, "b": [-Infinity, NaN, Infinity], "c": "NaN \" Infinity"}"#
    let c = try ForeignConfiguration(json: Array(text.utf8))
    #expect(throws: ConfigurationError.self) { try c.double("a") }
    #expect(try c.doubles("b")[0] == -.infinity)
    #expect(try c.doubles("b")[1].isNaN)
    #expect(try c.doubles("b")[2] == .infinity)
    #expect(try c.string("c") == "NaN \" Infinity")
  }

  @Test func unknownModelsNameTheNearest() throws {
    let c = ForeignConfiguration(.object(["model_type": .string("lama")]))
    #expect {
      try FamilyCatalog.family(c, tensorNames: [])
    } throws: { error in
      "\(error)".contains("\"lama\"") && "\(error)".contains("transformers llama")
    }
  }

  // MARK: - Helpers

  private func parse(_ bytes: [UInt8]) {
    do throws(ConfigurationError) {
      _ = plans(try ForeignConfiguration(json: bytes).value, "text")
    } catch { #expect(!error.path.isEmpty && !error.reason.isEmpty) }
  }

  /// Whether there is a plan; what stops it must say which field.
  private func plans(_ value: JSONValue, _ what: String) -> Bool {
    do throws(ConfigurationError) {
      let config = ForeignConfiguration(value)
      let family = try FamilyCatalog.family(config, tensorNames: [])
      let plan = try family.plan(config)
      try plan.model.validate()
      // Layers are alike: a few show what all do.
      guard plan.model.layers <= 8 else { return true }
      let shapes = try plan.model.parameterShapes()
      do { _ = try plan.tensors.storedShapes(shapes) } catch {
        Issue.record("\(what): \(error)")
        return false
      }
      return true
    } catch {
      #expect(!error.path.isEmpty && !error.reason.isEmpty, "\(what): \(error)")
      return false
    }
  }

  /// Paths of all members of objects.
  private static func places(_ value: JSONValue) -> [[String]] {
    guard let members = value.members else { return [] }
    return members.keys.sorted().flatMap { key in
      [[key]] + places(members[key] ?? .null).map { [key] + $0 }
    }
  }

  private static func replacing(
    _ value: JSONValue, _ place: [String], _ new: JSONValue?
  ) -> JSONValue {
    guard var members = value.members, let key = place.first else { return value }
    members[key] =
      place.count == 1 ? new : replacing(members[key] ?? .null, Array(place.dropFirst()), new)
    return .object(members)
  }
}
