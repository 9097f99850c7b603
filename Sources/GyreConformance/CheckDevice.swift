import GyreTensors

/// What a device does besides computing: memory, failures, element types, random numbers.
enum CheckDevice {
  static func cases(setThreadCount: (@Sendable (Int) -> Int)?) -> [ConformanceCase] {
    let tags: Set<ConformanceCase.Tag> = [.device, .small]
    var cases = [
      ConformanceCase("device random numbers", tags) { check in randomNumbers(&check) },
      ConformanceCase("device copies", tags) { check in try copies(&check) },
      ConformanceCase("device casts", tags) { check in try casts(&check) },
      ConformanceCase("device failure is kept once", tags) { check in try stickyFailure(&check) },
      ConformanceCase("device out of memory", tags) { check in try outOfMemory(&check) },
      ConformanceCase("device memory returns", tags) { check in try memoryReturns(&check) },
    ]
    if let setThreadCount {
      cases.append(
        ConformanceCase("device thread count", tags) { check in
          try threadCount(&check, setThreadCount)
        })
    }
    return cases
  }

  /// Known answers of Philox 4x32-10 from the Random123 distribution.
  private static func randomNumbers(_ check: inout Check) {
    let zeros = CounterGenerator(seed: 0, stream: 0).words(0)
    check.require(
      "counter 0, key 0", zeros == [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8])
    let ones = CounterGenerator(seed: .max, stream: .max).words(.max)
    check.require("all ones", ones == [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd])
    let digits = CounterGenerator(
      seed: 0x299f_31d0_a409_3822, stream: 0x0370_7344_1319_8a2e
    ).words(0x85a3_08d3_243f_6a88)
    check.require(
      "digits of pi", digits == [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1])
  }

  private static func copies(_ check: inout Check) throws {
    for dtype in DType.allCases where !dtype.isQuantized {
      let values = TestValues.rounded(
        check.normals("copies", 301).map { Double($0) * 20 }, dtype)
      let unsigned = dtype == .uint8 ? values.map(abs) : values
      let t = TestValues.tensor(unsigned, TensorSpec([7, 43], dtype), on: check.device)
      check.identical(dtype.rawValue, try t.doubles(), unsigned)
    }
    let empty = Tensor([Float](), shape: [0, 3], on: check.device)
    check.require("empty", try empty.floats().isEmpty)
  }

  /// Conversion to each type is that of the host.
  private static func casts(_ check: inout Check) throws {
    let special: [Float] = [
      0, -0.0, 1, -1, 0.5, 1.5, 2.5, 65504, 65519, 65520, 1e-8, 6e-8, 6.1e-5, 3e38, -3e38,
      0x1p-140, .infinity, -.infinity,
    ]
    for dtype in [DType.bfloat16, .float16, .int8, .int32] {
      let source =
        check.normals("casts", 1000).map { $0 * 100 }
        + (dtype.isFloat ? special : [0, -0.5, 127.5, -1e3])
      let t = Tensor(source, shape: [source.count], on: check.device)
      let expected = TestValues.rounded(source.map(Double.init), dtype)
      let there = t.cast(to: dtype)
      check.identical(
        "to \(dtype.rawValue)", try there.doubles().map { $0 + 0 }, expected.map { $0 + 0 })
      check.identical(
        "from \(dtype.rawValue)", try there.cast(to: .float32).doubles().map { $0 + 0 },
        expected.map { $0 + 0 })
    }
  }

  private static func stickyFailure(_ check: inout Check) throws {
    let device = check.device
    let first = DeviceError.kernelFailed(kernel: "first", device: device.id.name, reason: "test")
    let second = DeviceError.kernelFailed(kernel: "second", device: device.id.name, reason: "test")
    device.fail(first)
    device.fail(second)
    _ = Tensor.full(3, [4], on: device)
    var thrown: DeviceError?
    do { try device.synchronize() } catch { thrown = error }
    check.require("the first failure is thrown", thrown == first)
    check.identical("works again", try works(device), [5, 5, 5])
  }

  private static func outOfMemory(_ check: inout Check) throws {
    let device = check.device
    let huge = Tensor(emptyWith: TensorSpec([1 << 50]), on: device)
    let sum = huge + huge
    var thrown: DeviceError?
    do { _ = try sum.floats() } catch { thrown = error }
    if case .outOfMemory(let requested, _, _) = thrown {
      check.require("the request is reported", requested == 4 << 50)
    } else {
      check.require("asking for 4 PiB throws outOfMemory", false)
    }
    check.identical("works again", try works(device), [5, 5, 5])
  }

  private static func works(_ device: any Device) throws -> [Double] {
    try (Tensor.full(3, [3], on: device) + .full(2, [3], on: device)).doubles()
  }

  private static func memoryReturns(_ check: inout Check) throws {
    let device = check.device
    let before = device.memory.inUse
    device.resetPeakMemory()
    try {
      let result = try training(check)
      check.require("peak counts what was used", device.memory.peak > before)
      check.finite("result", result)
    }()
    check.require("nothing is left", device.memory.inUse == before)
  }

  private static func threadCount(
    _ check: inout Check, _ set: @Sendable (Int) -> Int
  ) throws {
    let before = set(1)
    defer { _ = set(before) }
    let one = try training(check)
    for count in [2, 3, 8] {
      _ = set(count)
      check.identical("\(count) threads as one", try training(check), one)
    }
  }

  /// Loss and gradients of a small network, sized to be split among threads.
  private static func training(_ check: Check) throws -> [Double] {
    let device = check.device
    func tensor(_ name: String, _ shape: Shape) -> Tensor {
      Tensor(check.normals(name, shape.elementCount), shape: shape, on: device)
    }
    let variables = [tensor("x", [64, 96]), tensor("w", [160, 96]), tensor("v", [50, 80])]
    let targets = Tensor((0..<64).map { Int32($0 % 50) }, shape: [64], on: device)
    let tape = Tape()
    tape.watch(variables)
    let loss = tape.record {
      variables[0].rmsNormalized(epsilon: 1e-6).linear(variables[1]).gatedUnit()
        .crossEntropy(head: variables[2], targets).mean
    }
    let gradients = tape.gradients(of: loss, for: variables)
    return try loss.doubles() + gradients.flatMap { try $0?.doubles() ?? [.nan] }
  }
}
