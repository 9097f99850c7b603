import GyreLayers
import GyreModels

/// A small model of a study: one mixer with options, one or two layers.
public struct StudyModel: Sendable {
  public var name: String
  /// Where it stands in the table: models of one kind of transition are together.
  public var group: String
  public var kind: String
  public var options: [String: JSONValue]

  init(_ name: String, _ group: String, _ kind: String, _ options: [String: JSONValue] = [:]) {
    (self.name, self.group, self.kind, self.options) = (name, group, kind, options)
  }

  /// Layers of a mixer and a gated feed-forward block.
  public func configuration(
    vocabulary: Int, width: Int, layers: Int
  ) throws(ConfigurationError) -> ModelConfiguration {
    var c = ModelConfiguration()
    c.vocabulary = vocabulary
    (c.width, c.layers) = (width, layers)
    c.pattern = [kind]
    if !options.isEmpty { c.mixers[kind] = .object(options) }
    c.feedForwardOptions = .object(["hidden": .integer(2 * width)])
    c.initialDeviation = 0.1
    try c.validate()
    return c
  }
}
