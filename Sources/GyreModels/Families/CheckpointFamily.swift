import GyreLayers

/// A public checkpoint layout: from its configuration and tensor names to ours and back.
///
/// To add one: one file that conforms and one line in `FamilyCatalog`. Loading, conversion both
/// ways, the comparison of names and shapes, and gradients under public names follow from the plan.
public protocol CheckpointFamily: Sendable {
  /// Library and model type: "transformers llama", "flash-linear-attention gla".
  static var name: String { get }
  /// Whether the layout has a `config.json`; true unless a family says otherwise.
  static var hasConfiguration: Bool { get }
  /// The `model_type` that no other family has; nil where `recognizes` says more.
  static var modelType: String? { get }
  /// Whether a folder is of the family; by `modelType` unless a family says otherwise. Two libraries can
  /// use one `model_type`; `tensorNames` then decides.
  static func recognizes(_ config: ForeignConfiguration, tensorNames: Set<String>) -> Bool
  /// Our configuration and the map of tensors.
  ///
  /// - Throws: the field that is missing, of the wrong type or not supported, and what it must be.
  static func plan(_ config: ForeignConfiguration) throws(ConfigurationError) -> FamilyPlan
  /// The public `config.json` of a model that was not made from one; nil where the layout cannot
  /// express it. Whoever calls checks that `plan` of the result gives the model back.
  static func configuration(of model: ModelConfiguration) -> JSONValue?
}

extension CheckpointFamily {
  public static var hasConfiguration: Bool { true }
  public static var modelType: String? { nil }
  public static func recognizes(
    _ config: ForeignConfiguration, tensorNames: Set<String>
  ) -> Bool { modelType != nil && config["model_type"]?.text == modelType }
  public static func configuration(of model: ModelConfiguration) -> JSONValue? { nil }
}

/// What a public configuration means in our terms.
public struct FamilyPlan: Sendable {
  public var model: ModelConfiguration
  public var tensors: TensorMap
  public init(model: ModelConfiguration, tensors: TensorMap = TensorMap()) {
    self.model = model
    self.tensors = tensors
  }
}
