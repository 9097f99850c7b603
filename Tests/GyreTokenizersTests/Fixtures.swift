import Foundation
import Testing

@testable import GyreTokenizers

/// Data that Scripts/goldens/tokenizer_fixtures.py makes with the public library.
enum Fixtures {
  struct Case: Sendable {
    var text: String
    var ids: [TokenID] = []
    var before: [TokenID] = []
    var after: [TokenID] = []
    var decoded = ""
    /// Decoded with the marks around it, special tokens skipped.
    var plain = ""
  }

  struct Pipeline: Sendable {
    var name: String
    var json: [UInt8]
    var cases: [Case]
  }

  static func json(_ name: String) throws -> JSONValue {
    let file = Bundle.module.url(forResource: "Fixtures/\(name)", withExtension: "json")
    let url = try #require(file, "the fixture \(name) is missing")
    return try JSONReader.parse(Array(try Data(contentsOf: url)), file: name).root
  }

  static func pipelines() throws -> [Pipeline] {
    let models = try json("models")
    var modelTexts: [String: String] = [:]
    models.forEachChild { (_, key, value) in
      modelTexts[String(decoding: models.document.bytes(at: key), as: UTF8.self)] =
        String(decoding: models.document.bytes(at: value), as: UTF8.self)
    }
    modelTexts["whole"] = modelTexts["bytelevel"]?.replacing(
      #""ignore_merges":false"#, with: #""ignore_merges":true"#)
    modelTexts["fuse"] = modelTexts["chars"]?.replacing(
      #""fuse_unk":false"#, with: #""fuse_unk":true"#)
    modelTexts["nofuse"] = modelTexts["chars"]
    let root = try json("pipelines")
    let texts = try root.required("texts").elements().map { try $0.string() }
    return try root.required("pipelines").elements().map { entry in
      let model = try #require(modelTexts[entry.required("model").string()])
      let whole = try entry.required("json").string().replacing(
        #""model": "@""#, with: "\"model\": \(model)")
      let cases = try zip(texts, entry.required("cases").elements()).map { text, value in
        func ids(_ name: StaticString) throws -> [TokenID] {
          try value[name]?.elements().map { TokenID(try $0.integer()) } ?? []
        }
        let decoded = try value["text"]?.string() ?? ""
        return Case(
          text: text, ids: try ids("ids"), before: try ids("before"), after: try ids("after"),
          decoded: decoded, plain: try value["plain"]?.string() ?? decoded)
      }
      return Pipeline(
        name: try entry.required("name").string(), json: Array(whole.utf8), cases: cases)
    }
  }
}

/// A small generator of reproducible random numbers (SplitMix64).
struct SplitMix: RandomNumberGenerator {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
    return z ^ z >> 31
  }
}
