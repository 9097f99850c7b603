import GyreTensors
import Testing

@testable import GyreCheckpoints

@Suite struct GGUFTests {
  private let path = fixture("types.gguf", in: "gguf")

  @Test func metadata() throws {
    let file = try GGUFFile(path: path)
    #expect(file.architecture == "llama" && file.values["llama.block_count"]?.int == 3)
    #expect(file.values["llama.rope.freq_base"]?.double == 1e4)
    #expect(file.values["some.flag"]?.bool == true)
    #expect(file.values["some.integers"]?.array?.compactMap(\.int) == [1, -2, 3])
    #expect(
      file.values["tokenizer.ggml.tokens"]?.array?.compactMap(\.string) == ["a", "é", ""])
  }

  /// Every element type unpacks to what the public package says, bit for bit up to one rounding.
  @Test func elementTypes() throws {
    let file = try GGUFFile(path: path)
    let expected = try SafetensorsFile(path: fixture("types.safetensors", in: "gguf"))
    #expect(file.names == expected.names)
    for name in expected.names {
      let (y, r) = (try file.readFloat32(name), try expected.readFloat32(name))
      #expect(try file.info(name).shape == expected.info(name).shape)
      let scale = r.reduce(Float(0)) { max($0, abs($1)) }
      let worst = zip(y, r).reduce(Float(0)) { max($0, abs($1.0 - $1.1)) }
      #expect(y.count == r.count && worst <= scale * 2e-7, "\(name) off by \(worst / scale)")
    }
  }

  /// Packing loses at most half a level of the block's range; Q4_0 a whole one at its far end.
  @Test(
    arguments: [
      (BlockType.q8_0, 0.005), (.q4_0, 0.126), (.q4_1, 0.067), (.q4_K, 0.06), (.q5_K, 0.03),
      (.q6_K, 0.03), (.float16, 5e-4), (.bfloat16, 4e-3), (.float32, 0),
    ] as [(BlockType, Double)])
  func packing(_ type: BlockType, _ tolerance: Double) throws {
    let x = CounterGenerator(seed: 7, name: type.name).normals(2048)
    let scale = x.reduce(Float(0)) { max($0, abs($1)) }
    let folder = try TemporaryFolder()
    var writer = GGUFWriter(architecture: "test")
    writer.set("a.list", .array([.integer(1), .integer(-5_000_000_000)]))
    writer.set("a.text", .string("héllo"))
    try writer.add("x", { x }, shape: [4, 512], as: type)
    try writer.add("vector", { [1, 2, 3] }, shape: [3], as: type)
    try writer.write(to: folder("a.gguf"))
    let file = try GGUFFile(path: folder("a.gguf"))
    #expect(file.values["a.list"]?.array?.compactMap(\.int) == [1, -5_000_000_000])
    #expect(file.values["a.text"]?.string == "héllo")
    #expect(try file.info("x").blockType == type)
    #expect(try file.readFloat32("vector") == [1, 2, 3])
    let y = try file.readFloat32("x")
    let worst = zip(x, y).reduce(Float(0)) { max($0, abs($1.0 - $1.1)) }
    #expect(Double(worst) <= tolerance * Double(scale), "off by \(worst / scale)")
  }

  @Test func halves() {
    for bits in UInt16.min ... .max where bits & 0x7c00 != 0x7c00 {
      let value = FloatConversion.float32(half: bits)
      #expect(Half.bits(value) == bits)
    }
    #expect(Half.bits(65519) == 0x7bff && Half.bits(65520) == 0x7c00)
    #expect(Half.bits(.nan) & 0x7fff > 0x7c00)
    #expect(Half.bits(2.9e-8) == 0 && Half.bits(3e-8) == 1)
  }

  /// Truncations, flipped bytes and absurd counts give an error or a file whose tensors can be read.
  @Test func damage() throws {
    let whole = try MappedFile(path: path).withUnsafeBytes { Array($0) }
    for count in stride(from: 0, to: 900, by: 1) {
      #expect(throws: CheckpointError.self) { try GGUFFile(bytes: Array(whole[..<count])) }
    }
    let generator = CounterGenerator(seed: 3, name: "gguf")
    for i in 0..<3000 {
      var bytes = whole
      for j in 0..<2 {
        let place = generator.integer(UInt64(4 * i + 2 * j), below: 900)
        bytes[place] = UInt8(truncatingIfNeeded: generator.word(UInt64(4 * i + 2 * j + 1)))
      }
      guard let file = try? GGUFFile(bytes: bytes) else { continue }
      for name in file.names { _ = try? file.readFloat32(name) }
    }
  }
}
