import GyreEvolution
import GyreLayers
import GyreModels
import GyrePlatform
import GyreRecurrence
import GyreTensors

/// `gyre bench --evolution`: what evolution costs beside plain inference, and EGG beside the machine's rate
/// of int8 products.
struct EvolutionRows: Encodable {
  struct Row: Encodable {
    var name: String
    var value: Double
    var unit: String
    /// The least that the project asks for; nil where it is only told.
    var floor: Double?
  }
  var device: String
  /// Multiply-adds a second of a large int8 product, where the device has such a kernel.
  var int8MultiplyAddsPerS: Double?
  var rows: [Row] = []
  /// Where the time of a forward pass goes, with --ops on devices that measure kernels.
  struct Kernel: Encodable {
    var name: String
    /// Milliseconds of a plain pass, and of one with perturbations.
    var plain = 0.0
    var perturbed = 0.0
  }
  struct Profile: Encodable {
    var name: String
    var kernels: [Kernel]
  }
  var profiles: [Profile] = []
  private let ops: Bool

  enum CodingKeys: String, CodingKey { case device, int8MultiplyAddsPerS, rows, profiles }

  init(
    on device: any Device, ops: Bool, wants: (String) -> Bool, report: (String) -> Void
  ) throws {
    self.ops = ops
    self.device = Devices.detail(of: device)
    int8MultiplyAddsPerS = try int8Rate(on: device)
    let isCard = device.id.name.hasPrefix("cuda")
    let sizes = isCard ? [(256, 6, 1 << 18, 100)] : [(64, 2, 1024, 16), (256, 6, 256, 8)]
    for (width, layers, members, tokens) in sizes {
      let name = "egg, width \(width), \(layers) layers, \(members) members × \(tokens) bytes"
      guard wants(name), isCard || int8MultiplyAddsPerS != nil else { continue }
      report(name)
      try egg(
        name, EggShape(width: width, layers: layers), members, tokens, device,
        streams: isCard ? 16 : members)
    }
    for preset in isCard ? ["rwkv7-350m"] : ["rwkv7-100m", "mingru-100m"] where wants(preset) {
      for tokens in isCard ? [16, 64] : [32] {
        for vectors in [true, false] {
          report(preset)
          try forward(
            preset, members: isCard ? 1024 : 32, tokens: tokens, vectors: vectors, device)
        }
      }
    }
    if wants("linear 8192") {
      report("linear 8192")
      try linear(device)
    }
  }

  func print() {
    Terminal.line(
      device
        + (int8MultiplyAddsPerS.map { ": int8 products of " + Format.count($0, "multiply-adds/s") }
          ?? ""))
    var table = Table([("", .left), ("", .right), ("", .left), ("floor", .right)])
    for row in rows {
      let isShare = row.unit == "%"
      table.add([
        row.name, isShare ? Format.fixed(row.value, 1) : Format.grouped(Int(row.value)), row.unit,
        row.floor.map { "\(Format.fixed($0, 0)) \(row.unit)" } ?? "",
      ])
    }
    table.print()
    for profile in profiles {
      Terminal.line("\n\(profile.name), ms of a pass")
      var table = Table([("", .left), ("plain", .right), ("perturbed", .right)])
      for kernel in profile.kernels.prefix(40) {
        table.add([
          kernel.name, Format.fixed(kernel.plain, 3), Format.fixed(kernel.perturbed, 3),
        ])
      }
      table.print()
    }
  }

  private mutating func add(
    _ name: String, _ value: Double, _ unit: String, floor: Double? = nil
  ) {
    rows.append(Row(name: name, value: value, unit: unit, floor: floor))
  }

  private func int8Rate(on device: any Device) throws -> Double? {
    // What NVIDIA states for dense products of its Hopper cards with 132 multiprocessors.
    if ["H100", "H200"].contains(where: self.device.contains) { return 1979e12 / 2 }
    let size = 1024
    let numbers = (0..<size * size).map { Int8(truncatingIfNeeded: $0 &* 31 % 251 - 125) }
    guard Devices.int8Product(numbers, numbers, size: size, on: device) != nil else { return nil }
    let times = try Measurement.times(on: device, 0.3) {
      _ = Devices.int8Product(numbers, numbers, size: size, on: device)
    }
    return Double(size * size * size) / times[0]
  }

  /// One generation: every member's forward pass with its noise, and the update.
  private mutating func egg(
    _ name: String, _ shape: EggShape, _ members: Int, _ tokens: Int, _ device: any Device,
    streams: Int
  ) throws {
    let isCard = device.id.name.hasPrefix("cuda")
    let model = EggModel(shape, seed: 1, device: device)
    let generator = CounterGenerator(seed: 1, name: "text")
    let text = Tensor(
      (0..<streams * (tokens + 1)).map { UInt8(generator.integer(UInt64($0), below: 255) + 1) },
      shape: [streams, tokens + 1], on: device)
    let noise = EggNoise(.generated(seed: 1, epoch: 0, firstPair: 0))
    let signs = Tensor(
      (0..<members / 2).map { Int8($0 % 3 - 1) }, shape: [members / 2], on: device)
    let state = model.state(members: members)
    let op = EggForward(shape, noise: noise, group: members / streams)
    func forward() { _ = apply(op, [model.weights, text, state]) }
    let whole = try Measurement.times(on: device, 0.5) {
      forward()
      _ = apply(EggUpdate(shape, noise: noise, threshold: 20), [model.weights, signs])
    }
    let alone = try Measurement.times(on: device, 0.5) { forward() }
    let read = Double(members * tokens)
    let products = Double(12 * shape.width * shape.width * shape.layers + 256 * shape.width) * read
    let (step, pass) = (whole[whole.count / 2], alone[alone.count / 2])
    add(name + ": training step", read / step, "bytes/s")
    add("  multiply-adds of the step's products", products / step, "/s")
    add("  the same, forward alone", products / pass, "/s")
    if let peak = int8MultiplyAddsPerS {
      add(
        "  whole step, of the rate of int8 products", products / step / peak * 100, "%",
        floor: isCard ? 25 : nil)
      add("  forward alone, of the rate of int8 products", products / pass / peak * 100, "%")
    }
  }

  /// A whole forward pass to the loss, one member a row, beside the plain one.
  private mutating func forward(
    _ preset: String, members: Int, tokens: Int, vectors: Bool, _ device: any Device
  ) throws {
    let model = try TrainingProfile.model(preset, on: device)
    let ids = (0..<members * tokens).map { Int32($0 * 37 % 251) }
    let text = Tensor(ids, shape: [members, tokens], on: device)
    let strategy = Perturbation.Strategy(seed: 3, sigma: 0.01, includesVectors: vectors)
    var epoch: UInt32 = 0
    func plain() {
      var state = model.makeState(batch: members)
      _ = model.loss(text, targets: text, state: &state).rows
    }
    func perturbed() {
      epoch += 1
      let population = Perturbation(
        strategy, epoch: epoch, members: (0..<Int32(members)).map { $0 },
        parameters: model.parameters, on: device)
      Perturbation.$current.withValue(population) {
        let text = text.detached()
        var state = model.makeState(batch: members)
        _ = model.loss(text, targets: text, state: &state).rows
      }
    }
    let precision: ComputePrecision =
      device.id.name.hasPrefix("cuda") ? .bfloat16 : ComputePrecision.current
    let name =
      "\(preset), \(members) members × \(tokens) tokens, rank 1\(vectors ? "" : ", matrices only")"
    let share = try ComputePrecision.$current.withValue(precision) {
      let share = try EvolutionRows.ratio(plain, perturbed, on: device)
      guard ops, let usual = try Devices.profile(device, plain),
        let other = try Devices.profile(device, perturbed)
      else { return share }
      let kernels = Set(usual.keys).union(other.keys).map {
        Kernel(
          name: $0, plain: usual[$0]?.milliseconds ?? 0,
          perturbed: other[$0]?.milliseconds ?? 0)
      }
      let sum = Kernel(
        name: "all", plain: kernels.reduce(0) { $0 + $1.plain },
        perturbed: kernels.reduce(0) { $0 + $1.perturbed })
      profiles.append(
        Profile(
          name: name,
          kernels: [sum]
            + kernels.sorted {
              (max($0.plain, $0.perturbed), $1.name) > (max($1.plain, $1.perturbed), $0.name)
            }))
      return share
    }
    add(name + ": of plain inference", share * 100, "%", floor: 85)
  }

  /// One linear layer of 8,192 × 8,192, rows that are members each, noise made on the fly.
  private mutating func linear(_ device: any Device) throws {
    let isCard = device.id.name.hasPrefix("cuda")
    let (size, rows) = (isCard ? 8192 : 2048, isCard ? 1024 : 256)
    let values = CounterGenerator(seed: 1, name: "linear").uniforms(size * size, -0.01, 0.01)
    // Several in a row, as a model's layers come: each makes its noise anew.
    let weights = (0..<(isCard ? 8 : 1)).map {
      Parameter(name: "weight \($0)", value: Tensor(values, shape: [size, size], on: device))
    }
    // A tenth of a second at a time: a card that just rested is faster than one at work.
    let repeats = isCard ? 64 : 1
    let some = CounterGenerator(seed: 2, name: "rows").uniforms(rows * size, -1, 1)
    let whole = Tensor(some, shape: [rows, 1, size], on: device)
    let x = isCard ? whole.cast(to: .bfloat16) : whole
    let strategy = Perturbation.Strategy(seed: 3, sigma: 0.01)
    var epoch: UInt32 = 0
    func layers() { for weight in weights { _ = x.linear(weight.value) } }
    let share = try ComputePrecision.$current.withValue(isCard ? .bfloat16 : .float32) {
      try EvolutionRows.ratio(
        { for _ in 0..<repeats { layers() } },
        {
          for _ in 0..<repeats {
            epoch += 1
            let population = Perturbation(
              strategy, epoch: epoch, members: (0..<Int32(rows)).map { $0 }, parameters: weights,
              on: device)
            Perturbation.$current.withValue(population) { layers() }
          }
        }, on: device)
    }
    add(
      "linear \(size) × \(size), \(rows) members of one row, rank 1: of the plain product",
      share * 100, "%", floor: isCard ? 91 : nil)
  }

  /// The time of `plain` over that of `other`: they run in turn, so that what else the machine does slows
  /// both; the median of the ratios.
  private static func ratio(
    _ plain: () -> Void, _ other: () -> Void, on device: any Device
  ) throws -> Double {
    func time(_ body: () -> Void) throws -> Double {
      let start = ContinuousClock.now
      body()
      try device.synchronize()
      return (ContinuousClock.now - start).seconds
    }
    _ = (try time(plain), try time(other))
    var shares: [Double] = []
    var total = 0.0
    while shares.count < 5 || (total < 4 && shares.count < 101) {
      let (a, b) = (try time(plain), try time(other))
      shares.append(a / b)
      total += a + b
    }
    return shares.sorted()[shares.count / 2]
  }
}
