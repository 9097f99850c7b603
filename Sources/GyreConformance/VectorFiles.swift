import GyreCheckpoints
import GyreRecurrence
import GyreTensors

/// How far one tensor that an engine computed in one form is from what a file says.
public struct VectorResult: Sendable, Hashable, CustomStringConvertible {
  /// The engine that the file's inputs and equation asked for.
  public let engine: String
  public let form: SequenceForm
  /// As in the file: "out.y", "out.state", "grad.q".
  public let tensor: String
  /// max |a − b| / max |b|.
  public let maximumError: Double
  /// ‖a − b‖ / ‖b‖.
  public let frobeniusError: Double
  /// Whether the numbers are whole and must be equal.
  public var isExact = false

  public var isGradient: Bool { tensor.hasPrefix("grad.") }
  public var worst: Double { max(maximumError, frobeniusError) }
  public var description: String {
    "\(engine) \(form) \(tensor): \(maximumError), \(frobeniusError)"
  }
}

/// Compares engines with test vectors in safetensors files.
///
/// A file holds inputs `in.*`, the outputs over time `out.y`, the final state `out.state`, cotangents
/// `cot.y` and `cot.state`, and `grad.*`, the gradients of Σ y·cot.y + Σ state·cot.state; its metadata
/// `eq` states the equation. Files of EGG hold other tensors: see `EggVectors`.
public enum VectorFiles {
  /// The forms in which every file is run.
  public static let forms: [SequenceForm] = [.recurrent, .chunkwise, .parallel]

  /// Runs the engine that a file describes on `device` in every one of `forms`.
  ///
  /// - Throws: `CheckpointError` for an unreadable file, `invalid` where no engine has these inputs or
  ///   a tensor's shape differs; `DeviceError`.
  public static func check(
    path: String, device: any Device, forms: [SequenceForm] = forms
  ) throws -> [VectorResult] {
    let file = try SafetensorsFile(path: path)
    if EggVectors.describes(file) { return try EggVectors.check(file, device: device) }
    func read(_ name: String) throws -> Tensor {
      try Tensor(file.readFloat32(name), shape: file.info(name).shape, on: device)
    }
    var inputs: [String: Tensor] = [:]
    for name in file.names where name.hasPrefix("in.") {
      inputs[String(name.dropFirst(3))] = try read(name)
    }
    let subject = try VectorSubject(inputs, equation: file.metadata["eq"] ?? "", file: path)
    let expected = file.names.filter { $0.hasPrefix("out.") || $0.hasPrefix("grad.") }
    let names = inputs.keys.sorted()
    return try forms.flatMap { form in
      let tape = Tape()
      tape.watch(inputs.values)
      let (y, state) = tape.record { subject.run(form) }
      var found = ["out.y": y, "out.state": state]
      let cotangents = try [(y, "y"), (state, "state")].compactMap { tensor, name in
        guard file.contains("cot." + name) else { return (Tensor, Tensor)?.none }
        return (tensor, try read("cot." + name))
      }
      for (output, cotangent) in cotangents where output.shape != cotangent.shape {
        throw mismatch(path, "\(subject.engine) gives \(output.shape) for \(cotangent.shape)")
      }
      let gradients = tape.gradients(of: cotangents, for: names.compactMap { inputs[$0] })
      for (name, gradient) in zip(names, gradients) { found["grad." + name] = gradient }
      return try expected.map { name in
        let shape = try file.info(name).shape
        // An input on which nothing depends has no gradient: zero.
        let value = found[name] ?? .zeros(shape, on: device)
        guard value.shape == shape else {
          throw mismatch(path, "\(subject.engine) gives \(value.shape) for \(name) \(shape)")
        }
        let error = try Self.error(value.floats(), file.readFloat32(name))
        return VectorResult(
          engine: subject.engine, form: form, tensor: name, maximumError: error.maximum,
          frobeniusError: error.frobenius)
      }
    }
  }

  static func mismatch(_ path: String, _ reason: String) -> CheckpointError {
    .invalid(subject: path, reason: reason)
  }

  /// Relative errors; absolute ones where the expected values are all zero, NaN where one is.
  static func error<S: BinaryFloatingPoint>(
    _ a: [S], _ b: [S]
  ) -> (maximum: Double, frobenius: Double) {
    var (difference, size, squares, norm) = (0.0, 0.0, 0.0, 0.0)
    var isBroken = false
    for (x, y) in zip(a, b) {
      let d = Double(x) - Double(y)
      isBroken = isBroken || d.isNaN
      difference = max(difference, abs(d))
      size = max(size, abs(Double(y)))
      squares += d * d
      norm += Double(y) * Double(y)
    }
    if isBroken { return (.nan, .nan) }
    return (
      difference / (size > 0 ? size : 1), (squares / (norm > 0 ? norm : 1)).squareRoot()
    )
  }
}
