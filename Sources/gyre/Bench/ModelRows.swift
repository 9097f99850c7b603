import GyreModels

/// The models of the comparison: vocabulary 256, width 256, 4 layers, batch 16, 256 tokens.
enum ModelRows {
  static let (batch, length) = (16, 256)
  static let names = ["lstm", "gru", "mingru", "llama", "mamba2"]

  static func configuration(_ name: String) throws -> ModelConfiguration {
    if Presets.names.contains(name) { return try Presets.configuration(name) }
    var c = ModelConfiguration()
    (c.vocabulary, c.width, c.layers) = (256, 256, 4)
    switch name {
    case "lstm", "gru":
      c.pattern = [name]
      c.feedForward = nil
      c.mixers[name] = .object(["projects": .bool(false)])
    case "mamba2":
      c.pattern = ["mamba2"]
      c.feedForward = nil
    default:
      c.pattern = [name == "llama" ? "softmax_attention" : "min_gru"]
      c.feedForwardOptions = .object(["hidden": .integer(512)])
    }
    return c
  }
}
