import GyreTensors
import Testing

@Suite struct ElementTests {
  @Test func everyHalfSurvives() {
    for bits in UInt16.min...UInt16.max {
      let x = Half.float(bits)
      if x.isNaN {
        #expect(Half.float(Half.bits(x)).isNaN)
      } else if Half.bits(x) != bits {
        Issue.record("half \(bits): \(x) became \(Half.bits(x))")
      }
    }
  }

  @Test func everyBFloat16Survives() {
    for bits in UInt16.min...UInt16.max {
      let x = BFloat16.float(bits)
      if x.isNaN {
        #expect(BFloat16.float(BFloat16.bits(x)).isNaN)
      } else if BFloat16.bits(x) != bits {
        Issue.record("bfloat16 \(bits): \(x) became \(BFloat16.bits(x))")
      }
    }
  }

  /// Between neighbours the nearer is taken, and the even one in the middle.
  @Test func roundingIsToNearestEven() {
    func check(_ last: UInt16, _ value: (UInt16) -> Float, _ bits: (Float) -> UInt16) {
      for low in 0..<last {
        let (a, b) = (Double(value(low)), Double(value(low + 1)))
        let middle = Float((a + b) / 2)
        guard Double(middle) == (a + b) / 2 else { continue }
        let even = low % 2 == 0 ? low : low + 1
        if bits(middle) != even || bits(middle.nextDown) != low || bits(middle.nextUp) != low + 1
          || bits(-middle) != even | 0x8000
        {
          Issue.record(
            "\(middle) became \(bits(middle)), \(bits(middle.nextDown)), \(bits(middle.nextUp))")
        }
      }
    }
    check(0x7BFF, Half.float, Half.bits)
    check(0x7F7F, BFloat16.float, BFloat16.bits)
  }

  @Test func overflowIsInfinite() {
    #expect(Half.bits(65519) == 0x7BFF && Half.bits(65520) == 0x7C00 && Half.bits(-1e9) == 0xFC00)
    #expect(BFloat16.bits(.greatestFiniteMagnitude) == 0x7F80)
  }

  @Test func integersSaturate() throws {
    let t = Tensor([Float(-1e9), -3.5, 0.4, 300, .nan], shape: [5], on: ReferenceDevice())
    #expect(try t.cast(to: .int8).elements(Int8.self) == [-128, -3, 0, 127, 0])
  }
}

@Suite struct RandomTests {
  @Test func numbersArePureFunctions() {
    let g = CounterGenerator(seed: 7, name: "a")
    #expect(g.normals(100) == Array(g.normals(1000).prefix(100)))
    #expect(g.uniforms(10) != CounterGenerator(seed: 7, name: "b").uniforms(10))
    #expect(g.uniforms(10) == (0..<10).map { g.uniform(UInt64($0)) })
  }

  @Test func moments() {
    let n = 100_000
    let x = CounterGenerator(seed: 1).normals(n).map(Double.init)
    let mean = x.reduce(0, +) / Double(n)
    let variance = x.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(n)
    let fourth = x.reduce(0) { $0 + $1 * $1 * $1 * $1 } / Double(n)
    #expect(abs(mean) < 0.015 && abs(variance - 1) < 0.02 && abs(fourth - 3) < 0.15)
    let u = CounterGenerator(seed: 1).uniforms(n)
    #expect(u.allSatisfy { $0 > 0 && $0 < 1 })
    #expect(abs(u.reduce(0, +) / Float(n) - 0.5) < 0.005)
  }

  @Test func integersCoverTheirRange() {
    let g = CounterGenerator(seed: 3)
    let seen = Set((0..<1000).map { g.integer($0, below: 10) })
    #expect(seen == Set(0..<10))
  }
}

@Suite struct AllocatorTests {
  @Test func blocksAreReusedAndCounted() throws {
    let allocator = HostAllocator(name: "test")
    var first: HostBuffer? = try allocator.allocate(byteCount: 1000)
    let address = first?.hostPointer
    #expect(allocator.report.inUse == HostAllocator.sizeClass(1000))
    first = nil
    #expect(allocator.report.inUse == 0 && allocator.report.cached > 0)
    let second = try allocator.allocate(byteCount: 1000)
    #expect(second.hostPointer == address)
    #expect(allocator.report.peak == HostAllocator.sizeClass(1000))
  }

  @Test(arguments: [0, 1, 63, 64, 65, 1000, 4097, 1 << 20, (1 << 20) + 1])
  func sizeClassesWasteLittle(_ n: Int) {
    let size = HostAllocator.sizeClass(n)
    #expect(size >= n && size % 64 == 0 && size <= max(n + 64, n + n / 8 + 64))
  }

  @Test func poisonIsNaN() throws {
    let t = Tensor(emptyWith: TensorSpec([9]), on: ReferenceDevice(poisons: true))
    #expect(try t.floats().allSatisfy(\.isNaN))
  }

  @Test func aFailureIsThrownOnce() throws {
    let device = ReferenceDevice()
    _ = Tensor(emptyWith: TensorSpec([1 << 50]), on: device)
    #expect(throws: DeviceError.self) { try device.synchronize() }
    try device.synchronize()
  }

  @Test func theNullDeviceCounts() {
    let device = NullDevice()
    do {
      let a = Tensor.zeros([100, 100], on: device)
      _ = a + a
      #expect(device.memory.peak >= 80_000 && device.launchCount == 2)
    }
    #expect(device.memory.inUse == 0)
  }
}
