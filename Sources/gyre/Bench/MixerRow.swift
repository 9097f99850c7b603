import GyreLayers
import GyreMixers
import GyreModels
import GyreRecurrence
import GyreTensors

/// One layer of a mixer or feed-forward block of the catalogue, with its default options at width 256,
/// batch 4, 256 tokens.
struct MixerRow {
  static let (width, batch, length) = (256, 4, 256)

  var x: Tensor
  var variables: [Tensor]
  /// Operations of the products with parameters, forward; those of the recurrence come on top.
  var flops: Double
  var run: (Tensor) -> Tensor

  static var kinds: [String] {
    (MixerCatalog.mixers + MixerCatalog.feedForwards).map { $0.kind }
  }

  static func make(_ kind: String, on device: any Device) throws -> MixerRow {
    guard let type = MixerCatalog.type(of: kind) else {
      throw Failure("no mixer is called '\(kind)'")
    }
    return try make(type, device)
  }

  private static func make<M: SequenceMixer>(_: M.Type, _ device: any Device) throws -> MixerRow {
    let configuration = M.Configuration()
    try configuration.validate(width: width)
    var p = ParameterBuilder(source: RandomParameters(seed: 1, device: device), device: device)
    let mixer = try M(
      configuration, width: width, layer: LayerPosition(index: 0, count: 1), parameters: &p)
    let variables = p.parameters.map(\.value)
    let values = CounterGenerator(seed: 1, name: "x").normals(batch * length * width)
    let weights = variables.filter { $0.shape.rank == 2 }.reduce(0) { $0 + $1.shape.elementCount }
    return MixerRow(
      x: Tensor(values, shape: [batch, length, width], on: device), variables: variables,
      flops: 2 * Double(weights) * Double(batch * length)
    ) { x in
      var state = State(mixer.stateSpec, batch: batch)
      var context = SequenceContext()
      return mixer(x, state: &state, context: &context)
    }
  }
}
