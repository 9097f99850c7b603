import Foundation
import GyreCheckpoints
import GyreLayers
import GyreModels
import GyrePlatform
import GyreRecurrence
import GyreTensors
import Testing

/// Models that were built here, written in the layout of the library that has the same layers.
@Suite struct PublicLayoutTests {
  /// Configurations by the model type that they are written as.
  static let models: [(type: String, json: String)] = [
    (
      "rwkv",
      """
      "pattern": ["rwkv4"], "feed_forward": "rwkv4_channel_mix", "norm": "layer",
      "norm_epsilon": 1e-5, "normalizes_embedding": true, "halving_interval": 1
      """
    ),
    (
      "rwkv6",
      """
      "pattern": ["rwkv6"], "mixers": {"rwkv6": {"mixRank": 4, "decayRank": 4, "normEpsilon": 1e-5}},
      "feed_forward": "rwkv6_channel_mix", "norm": "layer", "norm_epsilon": 1e-5, "norm_bias": false
      """
    ),
    (
      "rwkv7",
      """
      "pattern": ["rwkv7"], "feed_forward": "rwkv7_channel_mix", "norm": "layer",
      "norm_epsilon": 1e-5, "normalizes_embedding": true
      """
    ),
    ("xlstm", "\"pattern\": [\"mlstm\"], \"logit_cap\": 30"),
    (
      "forgetting_transformer",
      """
      "pattern": ["forgetting_attention"], "residual": "attention", "residual_block": 2,
      "mixers": {"forgetting_attention": {"heads": 2, "normalizesKeys": true}}
      """
    ),
    (
      "mesa_net",
      "\"pattern\": [\"mesa_net\"], \"mixers\": {\"mesa_net\": {\"normEpsilon\": 1e-6}}"
    ),
    (
      "minimax",
      """
      "pattern": ["lightning_attention", "softmax_attention"], "residual": "post_norm",
      "residual_factors": {"lightning_attention": [1.5, 0.5]},
      "mixers": {"softmax_attention": {"heads": 4, "keyHeads": 2}},
      "feed_forward": "mixture_of_experts", "feed_forward_options": {"experts": 3}
      """
    ),
  ]

  @Test(arguments: models.indices)
  func writtenAndReadAgain(_ index: Int) throws {
    let (type, json) = Self.models[index]
    let folder = FileManager.default.temporaryDirectory
      .appendingPathComponent("public-layout-\(type)-\(UInt64.random(in: 0..<(.max)))").path
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: folder) }

    let device = try Devices.open("cpu")
    let text = "{\"vocabulary\": 40, \"width\": 64, \"layers\": 2, \(json)}"
    let configuration = try ModelConfiguration(json: Array(text.utf8))
    let model = try LanguageModel(
      configuration, source: RandomParameters(seed: 3, device: device), device: device)
    let layout = try PublicLayout(of: configuration)
    var ours = MemoryTensors()
    var shapes: [String: Shape] = [:]
    for p in model.parameters {
      shapes[p.name] = p.shape
      try ours.add(p.name, shape: p.shape, try p.value.floats())
    }
    let tensors = try layout.tensors.exported(ours, shapes: shapes)
    var writer = SafetensorsWriter()
    for name in tensors.names { try writer.add(name, from: tensors) }
    try writer.write(to: folder + "/model.safetensors")
    try layout.configuration.write(
      toFile: folder + "/config.json", atomically: true, encoding: .utf8)

    let again = try ModelFolder(path: folder).load(on: device)
    let fields = try JSONValue(text: Array(layout.configuration.utf8)).members ?? [:]
    #expect(fields["model_type"] == .string(type))
    let tokens = Tensor((0..<18).map { Int32($0 * 5 % 40) }, shape: [2, 9], on: device)
    func logits(_ model: LanguageModel) throws -> [Float] {
      var state = model.makeState(batch: 2)
      return try model.logits(model.hidden(tokens, state: &state)).floats()
    }
    let (before, after) = (try logits(model), try logits(again))
    let largest = before.map(abs).max() ?? 0
    #expect(largest > 0 && zip(before, after).allSatisfy { abs($0 - $1) <= 1e-5 * largest })
  }
}
