import GyreCPU
import GyreLayers
import GyreMixers
import GyreRecurrence
import GyreTensors
import Testing

@testable import GyreEvolution

/// Every parameter of every mixer is perturbed, however it reaches its op.
@Suite("Members' parameters")
struct MemberParameterTests {
  private static let width = 32
  private static let kinds = (MixerCatalog.mixers + MixerCatalog.feedForwards).map { $0.kind }
  private static let members: [Int32] = [0, 1, 6, -1]

  private struct Built {
    var mixer: any SequenceMixer
    var parameters: [Parameter]
  }

  private func build(_ kind: String, on device: any Device) throws -> Built {
    func make<M: SequenceMixer>(_: M.Type) throws -> Built {
      var p = ParameterBuilder(
        source: RandomParameters(seed: 4, device: device), device: device)
      // The bound of HGRN's first layer is 0 whatever its parameter.
      let layer = LayerPosition(index: kind.hasPrefix("hgrn") ? 1 : 0, count: 2)
      let mixer = try M(
        M.testConfigurations[0], width: Self.width, layer: layer, parameters: &p)
      // What starts at zero would hide its perturbation behind a product.
      for parameter in p.parameters {
        let generator = CounterGenerator(seed: 9, name: parameter.name)
        let shift = generator.uniforms(parameter.shape.elementCount, -0.1, 0.1)
        parameter.value =
          parameter.value + Tensor(shift, shape: parameter.shape, on: device)
      }
      return Built(mixer: mixer, parameters: p.parameters)
    }
    let type = try #require(MixerCatalog.type(of: kind))
    return try make(type)
  }

  private func run(
    _ mixer: any SequenceMixer, rows: Int, _ form: SequenceForm, on device: any Device
  ) throws -> [Float] {
    let one = CounterGenerator(seed: 5, name: "x").uniforms(7 * Self.width, -1, 1)
    let x = Tensor(
      Array(repeatElement(one, count: rows).joined()), shape: [rows, 7, Self.width], on: device)
    var state = State(mixer.stateSpec, batch: rows)
    var context = SequenceContext(form: form)
    return try mixer(x, state: &state, context: &context).floats()
  }

  @Test("a member's forward pass is that of its parameters written out", arguments: kinds)
  func explicit(kind: String) throws {
    let device = try CPUDevice()
    let strategy = Perturbation.Strategy(seed: 8, sigma: 0.02, rank: 2)
    let built = try build(kind, on: device)
    for form in [SequenceForm.recurrent, .chunkwise] {
      // Two rows a member.
      let rows = Self.members.flatMap { [$0, $0] }
      let population = Perturbation(
        strategy, epoch: 3, members: rows, parameters: built.parameters, on: device)
      let together = try Perturbation.$current.withValue(population) {
        try run(built.mixer, rows: rows.count, form, on: device)
      }
      let names = built.parameters.indices.filter { !population.used.contains($0) }
        .map { built.parameters[$0].name }
      #expect(names.isEmpty, "\(kind), \(form): not perturbed: \(names)")
      let size = together.count / rows.count
      for (row, member) in rows.enumerated() {
        let alone = try build(kind, on: device)
        if member >= 0 { write(member, strategy, into: alone.parameters, on: device) }
        let expected = try run(alone.mixer, rows: 1, form, on: device)
        let found = together[row * size..<(row + 1) * size]
        let largest = max(expected.map(abs).max() ?? 1, 1e-3)
        let error = zip(found, expected).map { abs($0 - $1) }.max() ?? 0
        #expect(error <= 3e-4 * largest, "\(kind), \(form), member \(member): \(error)")
      }
    }
  }

  private func write(
    _ member: Int32, _ strategy: Perturbation.Strategy, into parameters: [Parameter],
    on device: any Device
  ) {
    let noise = Perturbation.Noise(
      strategy, epoch: 3, members: Tensor([member], shape: [1], on: device))
    for (i, p) in parameters.enumerated() {
      guard p.shape.rank == 2, let r = strategy.rank else {
        let z = noise.full(i, p.shape, scale: strategy.sigma, signed: true)
        p.value = p.value + z.reshaped(p.shape)
        continue
      }
      let (down, up) = noise.factors(i, p.shape, scale: strategy.matrixScale, signed: true)
      p.value =
        p.value
        + up.reshaped([r, p.shape[0]]).matmul(
          down.reshaped([r, p.shape[1]]), transposingLeft: true)
    }
  }
}
