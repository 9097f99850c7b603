// Whatever the bytes are: a value or a CheckpointError, never a crash, never memory by a number in the file.

import GyreTensors
import Testing

@testable import GyreCheckpoints

@Suite struct SafetensorsDamageTests {
  private func entry(_ offsets: String, shape: String = "[4]", dtype: String = "U8") -> String {
    "{\"dtype\":\"\(dtype)\",\"shape\":\(shape),\"data_offsets\":\(offsets)}"
  }

  @Test func everyTruncationIsNoticed() throws {
    let folder = try TemporaryFolder()
    let bytes = try contents(of: fixture("sharded/model-00001-of-00002.safetensors"))
    for count in 0..<bytes.count {
      #expect(!corruption(Array(bytes[..<count])).isEmpty)
      if count % 16 == 0 {
        try scribble(Array(bytes[..<count]), to: folder("cut"))
        #expect(throws: CheckpointError.self) { try SafetensorsFile(path: folder("cut")) }
      }
    }
    #expect(corruption(bytes + [0]).contains("behind the last tensor"))
  }

  /// Each mutant either fails with a typed error or is a consistent file whose every tensor can be read.
  @Test(arguments: [1, 2, 3, 4] as [UInt64])
  func seededDamageNeverCrashes(seed: UInt64) throws {
    let originals = [
      try contents(of: fixture("types.safetensors")),
      try contents(of: fixture("sharded/model-00001-of-00002.safetensors")),
    ]
    var random = SeededGenerator(seed: seed)
    var refused = 0
    for round in 0..<3000 {
      var bytes = originals[round % 2]
      let headerEnd = 8 + Int(bytes[0]) + Int(bytes[1]) << 8
      for _ in 0..<Int.random(in: 1...4, using: &random) {
        let position = Int.random(in: 0..<headerEnd, using: &random)
        switch Int.random(in: 0..<5, using: &random) {
        case 0: bytes[position] ^= 1 << UInt8.random(in: 0..<8, using: &random)
        case 1: bytes[position] = UInt8.random(in: 0...255, using: &random)
        case 2:
          bytes[position] = Array("0123456789[]{},:\"\\-e.".utf8).randomElement(using: &random) ?? 0
        case 3: bytes.remove(at: position)
        default: bytes.insert(UInt8.random(in: 32..<127, using: &random), at: position)
        }
      }
      do throws(CheckpointError) {
        let file = try SafetensorsFile(bytes: bytes)
        for tensor in file.tensors {
          #expect(tensor.byteRange.upperBound <= bytes.count)
          #expect(try file.withBytes(tensor.name) { $0.count } == tensor.byteCount)
          _ = try? file.readFloat32(tensor.name)
          _ = try? file.readInt32(tensor.name)
        }
      } catch .corrupt(_, let offset, let reason) {
        refused += 1
        #expect(offset >= 0 && offset <= bytes.count && !reason.isEmpty)
      } catch {
        Issue.record("seed \(seed), round \(round): \(error)")
      }
    }
    #expect(refused > 1000)
  }

  @Test func randomBytesNeverCrash() {
    var random = SeededGenerator(seed: 11)
    for _ in 0..<2000 {
      let count = Int.random(in: 0..<200, using: &random)
      let body = (0..<count).map { _ in
        Array("{}[]\":,0123eE+-.\\utfn ".utf8).randomElement(using: &random) ?? 0
      }
      let bytes =
        withUnsafeBytes(of: UInt64(count).littleEndian, Array.init) + [UInt8(ascii: "{")]
        + body.dropFirst()
      if let file = try? SafetensorsFile(bytes: bytes) { #expect(file.tensors.isEmpty) }
    }
  }

  @Test(
    arguments: [
      100_000_001, 1 << 40, UInt64(Int64.max), UInt64(Int64.max) + 1, UInt64.max, UInt64.max - 7,
    ] as [UInt64])
  func absurdHeaderLengthsAreRefused(length: UInt64) {
    let bytes = withUnsafeBytes(of: length.littleEndian, Array.init) + Array("{}".utf8)
    #expect(corruption(bytes).contains("header length"))
  }

  @Test func offsetsAreChecked() {
    let four: [UInt8] = [1, 2, 3, 4]
    let cases: [(String, [UInt8], String)] = [
      ("{\"a\":\(entry("[0,4]")),\"b\":\(entry("[3,7]"))}", four + [5, 6, 7], "overlaps"),
      ("{\"a\":\(entry("[0,4]")),\"b\":\(entry("[0,4]"))}", four, "overlaps"),
      ("{\"a\":\(entry("[0,4]")),\"b\":\(entry("[5,9]"))}", four + [0, 5, 6, 7, 8], "hole"),
      ("{\"a\":\(entry("[1,5]"))}", four + [5], "hole"),
      ("{\"a\":\(entry("[0,4]"))}", four + [5], "behind the last"),
      ("{}", [1], "behind the last"),
      ("{\"a\":\(entry("[0,5]"))}", four, "truncated"),
      ("{\"a\":\(entry("[4,0]"))}", four, "before it begins"),
      ("{\"a\":\(entry("[-4,0]"))}", four, "negative"),
      ("{\"a\":\(entry("[0,9223372036854775807]"))}", four, "truncated"),
      ("{\"a\":\(entry("[0,9223372036854775808]"))}", four, "64 bits"),
      ("{\"a\":\(entry("[0,99999999999999999999999]"))}", four, "64 bits"),
      ("{\"a\":\(entry("[0,4.0]"))}", four, "fraction"),
      ("{\"a\":\(entry("[0,4e0]"))}", four, "fraction"),
      ("{\"a\":\(entry("[0,04]"))}", four, "leading zero"),
      ("{\"a\":\(entry("[0,4,4]"))}", four, "more than 2"),
      ("{\"a\":\(entry("[0]"))}", four, "two numbers"),
      ("{\"a\":\(entry("[0,\"4\"]"))}", four, "whole number"),
    ]
    for (header, data, reason) in cases {
      let found = corruption(file(header, data: data))
      #expect(found.contains(reason), "\(header): \(found)")
    }
  }

  @Test func shapesAreChecked() {
    let four: [UInt8] = [1, 2, 3, 4]
    let cases: [(String, String, String)] = [
      ("[5]", "U8", "5 bytes"), ("[4]", "F32", "16 bytes"), ("[]", "U8", "1 bytes"),
      ("[-4]", "U8", "negative"), ("[4611686018427387904,4]", "U8", "impossible"),
      ("[4611686018427387904,4,0]", "U8", "impossible"),
      ("[0,4611686018427387904,4]", "U8", "impossible"),
      ("[9223372036854775807]", "F64", "impossible"),
      ("[4294967296,4294967296]", "NEW", "impossible"),
      ("[3]", "F4", "impossible"),
      ("[\(String(repeating: "1,", count: 64))4]", "U8", "more than 64"),
      ("4", "U8", "array"), ("[[4]]", "U8", "whole number"), ("[4,]", "U8", "whole number"),
    ]
    for (shape, dtype, reason) in cases {
      let found = corruption(
        file("{\"a\":\(entry("[0,4]", shape: shape, dtype: dtype))}", data: four))
      #expect(found.contains(reason), "\(shape) \(dtype): \(found)")
    }
  }

  @Test func duplicatesAreRefused() {
    let a = entry("[0,0]", shape: "[0]")
    for header in [
      "{\"a\":\(a),\"a\":\(a)}", "{\"a\":\(a),\"\\u0061\":\(a)}", "{\"é\":\(a),\"e\u{301}\":\(a)}",
      "{\"__metadata__\":{},\"__metadata__\":{}}", "{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}",
      "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
      "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"x\":{\"y\":1,\"y\":2}}}",
    ] {
      #expect(corruption(file(header)).contains("duplicate"), "\(header)")
    }
  }

  @Test func nestingIsLimited() {
    for (open, close) in [("[", "]"), ("{\"k\":", "}")] {
      for depth in [40, 200_000] {
        let nested =
          String(repeating: open, count: depth) + "1" + String(repeating: close, count: depth)
        let header =
          "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"extra\":\(nested)}}"
        #expect(corruption(file(header)).contains("nested"))
      }
    }
  }

  @Test func malformedTextIsRefused() throws {
    let a = entry("[0,0]", shape: "[0]")
    for header in [
      "", " {}", "[]", "{", "{}x", "{}{}", "{\"a\"}", "{\"a\":1}", "{\"a\":null}", "{\"a\":{}}",
      "{a:1}", "{,}",
      "{\"a\":\(a),}", "{\"__metadata__\":null}", "{\"__metadata__\":{\"k\":1}}", "{\"a\n\":\(a)}",
      "{\"\\ud800\":\(a)}", "{\"\\ud800\\u0041\":\(a)}", "{\"\\udc00\":\(a)}", "{\"\\x\":\(a)}",
      "{\"\\u00g0\":\(a)}",
      "{\"a", "{\"a\\", "{\"a\\u00",
      "{\"a\":{\"dtype\":7,\"shape\":[0],\"data_offsets\":[0,0]}}",
      "{\"a\":{\"shape\":[0],\"data_offsets\":[0,0]}}",
      "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,0]}}",
    ] { #expect(!corruption(file(header)).isEmpty, "\(header)") }
    for value in ["01", "-", "1.", "1e", ".5", "+1", "tru", "nul", "nan", "--1", "-01", "1e+"] {
      let header = "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"x\":\(value)}}"
      #expect(!corruption(file(header)).isEmpty, "\(value)")
    }
    for value in [
      "0", "-0", "-1.5e+10", "0.1", "1E5", "true", "false", "null", "[]", "{}",
      "[1, {\"k\" : \"v\"}]",
    ] {
      let header =
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"x\":\(value)}} \n "
      #expect(try SafetensorsFile(bytes: file(header)).names == ["a"], "\(value)")
    }
    #expect(
      corruption(
        withUnsafeBytes(of: UInt64(6).littleEndian, Array.init) + [
          0x7b, 0x22, 0xff, 0xfe, 0x22, 0x7d,
        ]
      ).contains("UTF-8"))
    #expect(try SafetensorsFile(bytes: file("{\"\\ud83d\\ude42\":\(a)}")).names == ["🙂"])
  }
}
