import Foundation
import GyreCheckpoints
import GyreModels
import GyrePlatform
import GyreRecurrence
import GyreTensors
import Testing

/// Checkpoints in public layouts with what the original libraries compute: each folder under
/// Fixtures/checkpoints, and each under the folders that GYRE_CHECKPOINTS names (colons between).
@Suite struct GoldenCheckpointTests {
  static let folders: [String] = {
    var roots = [
      URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .appendingPathComponent("Fixtures/checkpoints").path
    ]
    if let more = ProcessInfo.processInfo.environment["GYRE_CHECKPOINTS"] {
      roots += more.split(separator: ":").map(String.init)
    }
    return roots.flatMap { root in
      ((try? FileManager.default.contentsOfDirectory(atPath: root)) ?? []).sorted()
        .map { root + "/" + $0 }
    }.filter { FileManager.default.fileExists(atPath: $0 + "/expected.safetensors") }
  }()

  /// A checkpoint with its expected numbers.
  private struct Golden {
    let folder: ModelFolder
    let model: LanguageModel
    let expected: SafetensorsFile
    let tokens: Tensor
    let device: any Device

    init(_ path: String) throws {
      device = try Devices.open("cpu")
      folder = try ModelFolder(path: path)
      model = try folder.load(on: device)
      expected = try SafetensorsFile(path: path + "/expected.safetensors")
      tokens = Tensor(
        try expected.readInt32("input_ids"), shape: try expected.info("input_ids").shape,
        on: device)
    }

    /// The family's rules.
    var map: TensorMap? {
      get throws {
        guard case .family(let family, let config) = folder.layout else { return nil }
        return try family.plan(config).tensors
      }
    }
  }

  @Test(arguments: folders, [SequenceForm.recurrent, .chunkwise(size: 16), .chunkwise, .parallel])
  func logits(_ path: String, _ form: SequenceForm) throws {
    let golden = try Golden(path)
    var state = golden.model.makeState(batch: golden.tokens.shape[0])
    let y = try golden.model.logits(
      golden.model.hidden(golden.tokens, state: &state, form: form)
    ).floats()
    let r = try golden.expected.readFloat32("logits")
    let largest = r.map(abs).max() ?? 0
    let worst = zip(y, r).map { abs($0 - $1) }.max() ?? .infinity
    #expect(y.count == r.count && worst <= 2e-4 * largest, "\(path) \(form): \(worst / largest)")
  }

  /// The library's own numbers on a CPU, where its sort is not stable: the last tokens of the first row.
  @Test(arguments: [SequenceForm.recurrent, .chunkwise, .parallel])
  func unstableOrderOnRequest(_ form: SequenceForm) throws {
    let path = try #require(Self.folders.first { $0.hasSuffix("/mom") })
    try lastTokens(
      path, .flaMomOrder, form, ids: "expected", expected: "unstable", tolerance: 1e-5)
    #expect(throws: ModelFolderError.self) {
      try ModelFolder(
        path: path.dropLast(3) + "abc_plain", compatibility: [.flaMomOrder])
    }
  }

  /// Three chunks with float16 in the solver. A sum of another order can round to the next number.
  @Test(arguments: [SequenceForm.recurrent, .chunkwise, .parallel])
  func halfPrecisionOnRequest(_ form: SequenceForm) throws {
    let path = try #require(Self.folders.first { $0.hasSuffix("/mesa_float64") })
    try lastTokens(
      path, .flaMesaRounding, form, ids: "half", expected: "half", tolerance: 1e-4)
  }

  private func lastTokens(
    _ path: String, _ fault: Compatibility, _ form: SequenceForm, ids: String, expected: String,
    tolerance: Float
  ) throws {
    let device = try Devices.open("cpu")
    let model = try ModelFolder(path: path, compatibility: [fault]).load(on: device)
    let file = try SafetensorsFile(path: "\(path)/\(ids).safetensors")
    let tokens = Tensor(
      try file.readInt32("input_ids"), shape: try file.info("input_ids").shape, on: device)
    var state = model.makeState(batch: tokens.shape[0])
    let r = try SafetensorsFile(path: "\(path)/\(expected).safetensors").readFloat32("logits")
    let count = tokens.shape[1]
    let y = try model.logits(model.hidden(tokens, state: &state, form: form))
      .sliced(0..<1, axis: 0).sliced(count - 4..<count, axis: 1).floats()
    let worst = zip(y, r).map { abs($0 - $1) }.max() ?? .infinity
    #expect(y.count == r.count && worst <= tolerance * (r.map(abs).max() ?? 0), "\(worst)")
  }

  @Test(arguments: folders)
  func lossAndGradients(_ path: String) throws {
    let golden = try Golden(path)
    let (batch, count) = (golden.tokens.shape[0], golden.tokens.shape[1])
    let ids = try golden.tokens.elements(Int32.self)
    let next = (0..<batch * count).map { $0 % count == count - 1 ? -1 : ids[$0 + 1] }
    let targets = Tensor(next, shape: [batch, count], on: golden.device)
    let values = golden.model.parameters.map(\.value)
    let tape = Tape()
    tape.watch(values)
    let loss = tape.record {
      var state = golden.model.makeState(batch: batch)
      return golden.model.loss(golden.tokens, targets: targets, state: &state).mean
    }
    let expected = Double(try golden.expected.readFloat32("loss")[0])
    #expect(abs(try loss.item() - expected) <= 1e-5 * expected, "\(path)")

    let names = golden.expected.names.filter { $0.hasPrefix("grad.") }
    guard !names.isEmpty, let map = try golden.map else { return }
    let gradients = tape.gradients(of: loss, for: values)
    var ours = MemoryTensors()
    var shapes: [String: Shape] = [:]
    for (parameter, gradient) in zip(golden.model.parameters, gradients) {
      shapes[parameter.name] = parameter.shape
      let zeros = [Float](repeating: 0, count: parameter.shape.elementCount)
      try ours.add(parameter.name, shape: parameter.shape, try gradient?.floats() ?? zeros)
    }
    let theirs = try map.exported(ours, shapes: shapes)
    for name in names {
      let r = try golden.expected.readFloat32(name)
      let y = try stored(String(name.dropFirst(5)), in: theirs)
      let norm = r.reduce(0) { $0 + Double($1) * Double($1) }.squareRoot()
      let difference = zip(y, r).reduce(0) { $0 + pow(Double($1.0) - Double($1.1), 2) }.squareRoot()
      // One expert a token leaves its router a gradient of zero: rounding noise in both libraries.
      let noise = name.hasSuffix("mlp.gate.weight") ? 1e-7 : 0
      #expect(
        y.count == r.count && difference <= max(1e-3 * norm, noise),
        "\(path) \(name): \(difference / norm)")
    }
  }

  /// A tensor under the name that transformers has for it in memory: experts are one tensor there, and
  /// MiniMax's block has another name in files.
  private func stored(_ name: String, in source: AssembledTensors) throws -> [Float] {
    if source.contains(name) { return try source.readFloat32(name) }
    let renamed = name.replacingOccurrences(of: ".mlp.", with: ".block_sparse_moe.")
    if source.contains(renamed) { return try source.readFloat32(renamed) }
    let isDown = name.hasSuffix(".down_proj")
    for (base, parts) in [
      (name, isDown ? ["down_proj"] : ["gate_proj", "up_proj"]),
      (renamed, isDown ? ["w2"] : ["w1", "w3"]),
    ] {
      let experts = base.prefix(
        upTo: base.range(of: ".", options: .backwards)?.lowerBound ?? base.endIndex)
      guard source.contains("\(experts).0.\(parts[0]).weight") else { continue }
      var result: [Float] = []
      var e = 0
      while source.contains("\(experts).\(e).\(parts[0]).weight") {
        for part in parts { result += try source.readFloat32("\(experts).\(e).\(part).weight") }
        e += 1
      }
      return result
    }
    return try source.readFloat32(name)
  }

  @Test(arguments: folders)
  func greedyTokens(_ path: String) throws {
    let golden = try Golden(path)
    guard golden.expected.contains("greedy") else { return }
    let expected = try golden.expected.readInt32("greedy")
    var state = golden.model.makeState(batch: 1)
    var tokens = golden.tokens.sliced(0..<1, axis: 0)
    var produced: [Int32] = []
    while produced.count < expected.count {
      let hidden = golden.model.hidden(tokens, state: &state)
      let last = hidden.sliced(hidden.shape[1] - 1..<hidden.shape[1], axis: 1)
      let best = try golden.model.logits(last).argmax().elements(Int32.self)
      produced.append(best[0])
      tokens = Tensor(best, shape: [1, 1], on: golden.device)
    }
    #expect(produced == expected, "\(path)")
  }

  /// What we read and write again is the same file, bit for bit.
  @Test(arguments: folders)
  func roundTrip(_ path: String) throws {
    let golden = try Golden(path)
    guard let map = try golden.map else { return }
    var ours = MemoryTensors()
    for parameter in golden.model.parameters {
      try ours.add(parameter.name, shape: parameter.shape, try parameter.value.floats())
    }
    let theirs = try map.exported(ours, shapes: golden.folder.shapes)
    for name in theirs.names {
      let info = try golden.folder.stored.info(name)
      #expect(try theirs.info(name).shape == info.shape, "\(path) \(name)")
      guard info.storedType == .float32 else { continue }
      let bytes = try theirs.withBytes(name) { Array($0) }
      #expect(try golden.folder.stored.withBytes(name) { Array($0) } == bytes, "\(path) \(name)")
    }
  }
}
