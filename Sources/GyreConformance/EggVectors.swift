import GyreCheckpoints
import GyreRecurrence
import GyreTensors

/// Test vectors of EGG: one update of a population, where every number must be equal.
///
/// A file holds `weight.*` and `updated.*` int8 by the names of `EggShape.leaves`, `noise.*` int8
/// `[pairs, count]`, `tokens` uint8 `[members, T + 1]`, `state.initial` and `state.final` int8
/// `[members, layers, D]`, `fitness` int32 `[members]`, `unperturbed.fitness`, `unperturbed.state` and
/// `pair_sign` int8 `[pairs]`; its metadata `sigma_shift` and `threshold`. Sizes follow from the tensors.
enum EggVectors {
  static func describes(_ file: SafetensorsFile) -> Bool { file.contains("weight.emb") }

  /// - Throws: `CheckpointError` naming the tensor that is absent or does not fit; `DeviceError`.
  static func check(_ file: SafetensorsFile, device: any Device) throws -> [VectorResult] {
    let reader = Reader(file: file, device: device)
    let shape = try reader.shape()
    let members = try file.info("tokens").shape[0]
    guard members >= 2, members % 2 == 0 else {
      throw VectorFiles.mismatch(file.name, "tokens of \(members) members, which are not pairs")
    }
    let length = try file.info("tokens").shape.last
    guard length >= 2 else { throw VectorFiles.mismatch(file.name, "tokens of \(length) columns") }
    let sigmaShift = try reader.number("sigma_shift", 0...20)
    let threshold = try reader.number("threshold", 0...1 << 16)
    let leaves = shape.leaves
    let weights = try reader.joined("weight.", leaves)
    let noise = try reader.rows("noise.", leaves, pairs: members / 2, count: shape.noiseCount)
    let tokens = try reader.tensor("tokens", UInt8.self, [members, length])
    let stateShape: Shape = [members, shape.layers, shape.width]
    let state = try reader.tensor("state.initial", Int8.self, stateShape)

    let perturbation = EggNoise(.stored, sigmaShift: sigmaShift)
    let perturbed = apply(
      EggForward(shape, noise: perturbation), [weights, tokens, state, noise])
    let plain = apply(EggForward(shape), [weights, tokens, state])
    let fitness = try perturbed[0].elements(Int32.self)
    let signs = (0..<members / 2).map { Int8((fitness[2 * $0] - fitness[2 * $0 + 1]).signum()) }
    let votes = Tensor(signs, shape: [signs.count], on: device)
    let updated = apply(
      EggUpdate(shape, noise: perturbation, threshold: threshold), [weights, votes, noise])[0]

    var results: [VectorResult] = []
    func compare(_ name: String, _ found: [Double], _ expected: Shape) throws {
      guard file.contains(name) else { return }
      let info = try file.info(name)
      guard info.shape == expected else {
        throw VectorFiles.mismatch(file.name, "\(name) is \(info.shape), must be \(expected)")
      }
      let error = VectorFiles.error(found, try file.readInt32(name).map(Double.init))
      results.append(
        VectorResult(
          engine: "egg", form: .recurrent, tensor: name, maximumError: error.maximum,
          frobeniusError: error.frobenius, isExact: true))
    }
    try compare("fitness", fitness.map(Double.init), [members])
    try compare("state.final", try perturbed[1].doubles(), stateShape)
    try compare("unperturbed.fitness", try plain[0].doubles(), [members])
    try compare("unperturbed.state", try plain[1].doubles(), stateShape)
    try compare("pair_sign", signs.map(Double.init), [members / 2])
    let after = try updated.doubles()
    for leaf in leaves {
      try compare("updated." + leaf.name, Array(after[leaf.weights]), leaf.shape)
    }
    guard !results.isEmpty else {
      throw VectorFiles.mismatch(file.name, "holds nothing to compare with, such as fitness")
    }
    return results
  }

  private struct Reader {
    let file: SafetensorsFile
    let device: any Device

    func shape() throws -> EggShape {
      let emb = try file.info("weight.emb").shape
      guard emb.rank == 2, emb[0] == EggShape.vocabulary, (1...1 << 14).contains(emb[1]) else {
        throw VectorFiles.mismatch(file.name, "weight.emb is \(emb), must be [256, 1…16384]")
      }
      var layers = 0
      while file.contains("weight.layers.\(layers).ln1") { layers += 1 }
      return EggShape(width: emb[1], layers: layers)
    }

    func number(_ key: String, _ range: ClosedRange<Int>) throws -> Int {
      guard let text = file.metadata[key], let value = Int(text), range.contains(value) else {
        throw VectorFiles.mismatch(
          file.name, "metadata \(key) is \(file.metadata[key] ?? "absent"), must be in \(range)")
      }
      return value
    }

    func values<S: FixedWidthInteger>(_ name: String, _: S.Type, _ shape: Shape) throws -> [S] {
      let info = try file.info(name)
      guard info.shape == shape else {
        throw VectorFiles.mismatch(file.name, "\(name) is \(info.shape), must be \(shape)")
      }
      return try file.readInt32(name).map { value in
        guard let small = S(exactly: value) else {
          throw VectorFiles.mismatch(file.name, "\(name) holds \(value), which \(S.self) does not")
        }
        return small
      }
    }

    func tensor<S: HostScalar & FixedWidthInteger>(
      _ name: String, _: S.Type, _ shape: Shape
    ) throws -> Tensor {
      Tensor(try values(name, S.self, shape), shape: shape, on: device)
    }

    /// All leaves one after the other.
    func joined(_ prefix: String, _ leaves: [EggShape.Leaf]) throws -> Tensor {
      var all: [Int8] = []
      for leaf in leaves {
        let some = try values(prefix + leaf.name, Int8.self, leaf.shape)
        guard !some.contains(-128) else {
          throw VectorFiles.mismatch(file.name, "\(prefix + leaf.name) holds -128")
        }
        all += some
      }
      return Tensor(all, shape: [all.count], on: device)
    }

    /// The numbers of every pair, leaf after leaf.
    func rows(
      _ prefix: String, _ leaves: [EggShape.Leaf], pairs: Int, count: Int
    ) throws -> Tensor {
      var all = [Int8](repeating: 0, count: pairs * count)
      for leaf in leaves {
        let n = leaf.noiseCount
        let some = try values(prefix + leaf.name, Int8.self, [pairs, n])
        for j in 0..<pairs {
          for k in 0..<n { all[j * count + leaf.noise + k] = some[j * n + k] }
        }
      }
      return Tensor(all, shape: [pairs, count], on: device)
    }
  }
}
