import GyreTensors

/// Times of repeated runs.
struct Measurement: Encodable {
  var name: String
  /// What runs: "forward", "forward and backward", "training step".
  var pass: String
  var medianSeconds: Double
  /// The fastest run: what the code can do on a machine that does other things too.
  var bestSeconds: Double
  /// Half the distance between the quartiles over the median.
  var spread: Double
  var repeats: Int
  /// Bytes that must move and operations that must be done.
  var bytes: Double
  var flops: Double
  /// The larger of bytes over bandwidth and flops over peak.
  var floorSeconds: Double
  var tokensPerS: Double?

  /// Runs until there are enough repeats, after two that do not count.
  init(
    _ name: String, _ pass: String, bytes: Double, flops: Double, tokens: Int? = nil,
    on device: any Device,
    machine: MachinePeaks, minimumSeconds: Double = 0.4, _ body: () throws -> Void
  ) throws {
    let times = try Measurement.times(on: device, minimumSeconds, body)
    let median = times[times.count / 2]
    self.name = name
    self.pass = pass
    medianSeconds = median
    bestSeconds = times[0]
    spread = (times[times.count * 3 / 4] - times[times.count / 4]) / 2 / median
    repeats = times.count
    self.bytes = bytes
    self.flops = flops
    floorSeconds = max(bytes / machine.bandwidth, flops / machine.flops)
    tokensPerS = tokens.map { Double($0) / median }
  }

  /// Sorted times of at least five runs.
  static func times(
    on device: any Device, _ minimumSeconds: Double, _ body: () throws -> Void
  ) throws -> [Double] {
    let clock = ContinuousClock()
    for _ in 0..<2 { try body() }
    try device.synchronize()
    var times: [Double] = []
    var total = 0.0
    while times.count < 5 || (total < minimumSeconds && times.count < 200) {
      let start = clock.now
      try body()
      try device.synchronize()
      let seconds = (clock.now - start).seconds
      times.append(seconds)
      total += seconds
    }
    return times.sorted()
  }
}

/// What the machine can do, measured on the spot.
struct MachinePeaks: Encodable {
  /// Bytes a second of reading, or of a copy (read and written) where that is faster.
  var bandwidth: Double
  /// Operations a second of a large matrix product in the precision asked for.
  var flops: Double

  init(on device: any Device) throws {
    // Larger than the caches of large machines, or their bandwidth would be measured.
    let count = 1 << 27
    let source = Tensor.zeros([count >> 14, 1 << 14], on: device)
    let row = Tensor.zeros([1, 1 << 14], on: device)
    let copies = try Measurement.times(on: device, 0.3) { _ = source.affine(2) }
    let reads = try Measurement.times(on: device, 0.3) {
      _ = row.matmul(source, transposingRight: true, precision: .float32)
    }
    bandwidth = max(Double(8 * count) / copies[0], Double(4 * count) / reads[0])
    // A product that fills the machine; on processors too small for Strassen's scheme, whose rate is
    // above the machine's.
    let size = device.storesBFloat16 ? 8192 : 704
    let (a, b) = (
      Tensor.full(0.5, [size, size], on: device), Tensor.full(0.25, [size, size], on: device)
    )
    let precision = ComputePrecision.current
    let products = try Measurement.times(on: device, 0.3) {
      _ = a.matmul(b, precision: precision)
    }
    flops = 2 * Double(size * size * size) / products[0]
  }
}
