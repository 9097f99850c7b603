import Foundation
import GyreCheckpoints
import GyreLayers
import GyreMixers
import GyreModels
import GyrePlatform
import GyreTensors
import Testing

/// Models written as GGUF files and read again are the same models.
@Suite struct GGUFExportTests {
  private static let fixtures = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    .appendingPathComponent("Fixtures/checkpoints").path

  /// A path for one test, removed after it.
  private static func temporary<R>(_ ending: String, _ body: (String) throws -> R) rethrows -> R {
    let path =
      FileManager.default.temporaryDirectory.path
      + "/gyre-\(UInt64.random(in: 0 ... .max))\(ending)"
    defer { try? FileManager.default.removeItem(atPath: path) }
    return try body(path)
  }

  private static func logits(_ model: LanguageModel, _ ids: [Int32], _ shape: Shape) throws
    -> [Float]
  {
    var state = model.makeState(batch: shape[0])
    let tokens = Tensor(ids, shape: shape, on: model.device)
    return try model.logits(model.hidden(tokens, state: &state)).floats()
  }

  private static func error(_ y: [Float], _ r: [Float]) -> Double {
    guard y.count == r.count else { return .infinity }
    let worst = zip(y, r).map { abs($0 - $1) }.max() ?? .infinity
    return Double(worst / max(r.map(abs).max() ?? 0, 1e-30))
  }

  @Test(arguments: ["hf_llama", "hf_llama_linear", "hf_mamba2", "fla_rwkv7"])
  func golden(_ name: String) throws {
    let golden = Self.fixtures + "/" + name
    let expected = try SafetensorsFile(path: golden + "/expected.safetensors")
    let (ids, shape) = (
      try expected.readInt32("input_ids"), try expected.info("input_ids").shape
    )
    let device = try Devices.open("cpu")
    try Self.temporary(".gguf") { path in
      let folder = try ModelFolder(path: golden)
      try folder.writeGGUF(to: path)
      let read = try ModelFolder(path: path)
      #expect(read.isGGUF && read.layout.name == folder.layout.name)
      let y = try Self.logits(read.load(on: device), ids, shape)
      #expect(Self.error(y, try expected.readFloat32("logits")) < 2e-4)
      // And the public layout again, whose values are those of the original.
      try Self.temporary("") { back in
        try read.convert(to: back, layout: .hf)
        let (a, b) = (
          try CheckpointFolder(path: golden), try CheckpointFolder(path: back)
        )
        for tensor in b.names where a.contains(tensor) {
          let difference = Self.error(try b.readFloat32(tensor), try a.readFloat32(tensor))
          #expect(difference < 1e-6, "\(tensor)")
        }
      }
    }
  }

  /// What GGUF's qwen3next cannot say is refused; with its one activation the file is the same model.
  @Test func qwen3Next() throws {
    let golden = Self.fixtures + "/hf_qwen3_next_dense"
    let device = try Devices.open("cpu")
    let expected = try SafetensorsFile(path: golden + "/expected.safetensors")
    let (ids, shape) = (
      try expected.readInt32("input_ids"), try expected.info("input_ids").shape
    )
    try Self.temporary("") { folder in
      try FileManager.default.copyItem(atPath: golden, toPath: folder)
      let path = folder + "/model.gguf"
      #expect {
        try ModelFolder(path: folder).writeGGUF(to: path)
      } throws: { "\($0)".contains("hidden_act") }
      let file = folder + "/config.json"
      let text = try String(contentsOfFile: file, encoding: .utf8)
      try text.replacingOccurrences(of: "\"gelu\"", with: "\"silu\"")
        .replacingOccurrences(of: "_factor\": 0.25", with: "_factor\": 0.5")
        .write(toFile: file, atomically: true, encoding: .utf8)
      let model = try ModelFolder(path: folder)
      try model.writeGGUF(to: path)
      let original = try Self.logits(model.load(on: device), ids, shape)
      let read = try Self.logits(ModelFolder(path: path).load(on: device), ids, shape)
      #expect(Self.error(read, original) < 2e-6)
    }
  }

  private static func write(
    _ configuration: ModelConfiguration, to folder: String, on device: any Device
  ) throws -> LanguageModel {
    let model = try LanguageModel(
      configuration, source: RandomParameters(seed: 3, device: device), device: device)
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    try model.weights().write(to: folder + "/model.safetensors")
    try Data(configuration.json().utf8).write(to: URL(fileURLWithPath: folder + "/config.json"))
    return model
  }

  private static func configuration(_ width: Int) throws -> ModelConfiguration {
    var c = ModelConfiguration()
    (c.vocabulary, c.width, c.layers) = (96, width, 2)
    (c.norm, c.normalizesEmbedding, c.normEpsilon) = (.layer, true, 1e-5)
    var mixer = RWKV6.Configuration()
    (mixer.heads, mixer.keyExpansion, mixer.normEpsilon) = (2, 1, 64e-5)
    (mixer.mixRank, mixer.decayRank) = (32, 64)
    try c.setMixer(RWKV6.self, mixer)
    var channels = RWKV6ChannelMix.Configuration()
    (channels.hidden, channels.activation) = (3 * width, Unary.Kind.reluSquared.name)
    try c.setFeedForward(RWKV6ChannelMix.self, channels)
    return c
  }

  /// RWKV-6 in every type of matrices: exact as float32, near otherwise, stored or widened.
  @Test func rwkv6() throws {
    let device = try Devices.open("cpu")
    let ids = (0..<24).map { Int32(($0 * 37) % 96) }
    try Self.temporary("") { folder in
      let model = try Self.write(try Self.configuration(256), to: folder, on: device)
      let expected = try Self.logits(model, ids, [1, 24])
      for (type, bound) in [
        (BlockType.float32, 1e-5), (.bfloat16, 3e-2), (.float16, 4e-3), (.q8_0, 3e-2),
        (.q6_K, 0.1), (.q5_K, 0.2), (.q4_K, 0.4), (.q4_0, 0.4), (.q4_1, 0.4), (.q5_0, 0.2),
        (.q5_1, 0.2),
      ] {
        try Self.temporary(".gguf") { path in
          try ModelFolder(path: folder).writeGGUF(to: path, type: type)
          let read = try ModelFolder(path: path)
          let wide = try Self.logits(read.load(on: device), ids, [1, 24])
          #expect(Self.error(wide, expected) < bound, "\(type.name)")
          let stored = try read.load(on: device, matrices: .stored)
          let isKept = stored.parameters.contains { $0.value.dtype == type.dtype }
          #expect(isKept, "\(type.name)")
          let near = try Self.logits(stored, ids, [1, 24])
          // Only activations are rounded, to 1/254 of the largest of each run.
          #expect(Self.error(near, wide) < 3e-2, "\(type.name)")
        }
      }
    }
  }

  /// Stored matrices are the file's memory: loading allocates next to nothing.
  @Test func storedWeightsStayMapped() throws {
    let device = try Devices.open("cpu")
    try Self.temporary("") { folder in
      _ = try Self.write(try Self.configuration(256), to: folder, on: device)
      try Self.temporary(".gguf") { path in
        try ModelFolder(path: folder).writeGGUF(to: path, type: .q8_0)
        let fresh = try Devices.open("cpu")
        let before = fresh.memory.inUse
        let model = try ModelFolder(path: path).load(on: fresh, matrices: .stored)
        let own = fresh.memory.inUse - before
        let elements = model.parameterCount
        #expect(own < elements, "\(own) bytes for \(elements) parameters")
      }
    }
  }

  @Test func layoutsThatFilesCannotHold() throws {
    do {
      try ModelFolder(path: Self.fixtures + "/retnet_groups").writeGGUF(to: "/nonexistent/x.gguf")
      Issue.record("retnet was written")
    } catch { #expect("\(error)".contains("cannot be written as GGUF"), "\(error)") }
    do {
      try ModelFolder(path: Self.fixtures + "/hf_llama_llama3").writeGGUF(to: "/nonexistent/x.gguf")
      Issue.record("llama3 positions were written")
    } catch { #expect("\(error)".contains("rope_scaling"), "\(error)") }
  }
}
