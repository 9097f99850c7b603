import CGyreCUDALoader
import CGyreCUDASources
import GyreTensors

/// What the copy engine of sm_90 needs to bring boxes of tensors of bfloat16, rows of 128 bytes exchanged as wgmma reads
/// them; zeros beyond the tensors' ends. Addresses and rows are multiples of 16 bytes.
extension CUDALaunch {
  /// A tensor [batch, rows, heads, channels] by boxes of 64 rows and 64 channels of a head.
  func map(
    _ address: UInt64, batch: Int = 1, rows: Int, heads: Int = 1, channels: Int
  ) -> gyre_tensor_map {
    let row = 2 * channels * heads
    return map(
      address, [channels, heads, rows, batch], strides: [2 * channels, row, row * rows],
      box: [64, 1, 64, 1])
  }

  /// A matrix [rows, channels] by boxes of 64 rows and 64 channels, in which row 8 t + 2 j + e of every 32 is row
  /// 8 j + 2 t + e: so a lane has eight neighbouring columns of a product's result.
  ///
  /// - Precondition: `rows` is a multiple of 32.
  func turnedMap(_ address: UInt64, rows: Int, channels: Int) -> gyre_tensor_map {
    precondition(rows % 32 == 0, "turned map of \(rows) rows")
    let row = 2 * channels
    return map(
      address, [channels, 2, 4, 4, rows / 32], strides: [row, 8 * row, 2 * row, 32 * row],
      box: [64, 2, 4, 4, 2])
  }

  /// A matrix [rows, channels] by boxes of `box` rows and 64 channels.
  func rowMap(_ address: UInt64, rows: Int, channels: Int, box: Int) -> gyre_tensor_map {
    map(address, [channels, rows], strides: [2 * channels], box: [64, UInt32(box)])
  }

  /// K̃, W, Q̃ and B̂ of `count` records of delta rules, by boxes of 64 columns and 64 rows as they lie.
  func recordMap(_ address: UInt64, keys: Int, count: Int, bytes: Int) -> gyre_tensor_map {
    map(
      address + 8192, [64, keys / 64, 256, count], strides: [128, 2 * keys, bytes],
      box: [64, 1, 64, 1], swizzle: GYRE_CUDA_MAP_SWIZZLE_NONE)
  }

  /// - Parameter strides: bytes from one to the next along all axes but the first.
  private func map(
    _ address: UInt64, _ sizes: [Int], strides: [Int], box: [UInt32],
    swizzle: Int = GYRE_CUDA_MAP_SWIZZLE_128
  ) -> gyre_tensor_map {
    let size = MemoryLayout<gyre_tensor_map>.size
    return withUnsafeTemporaryAllocation(byteCount: size, alignment: 64) { memory in
      memory.initializeMemory(as: UInt8.self, repeating: 0)
      guard let start = memory.baseAddress else { return gyre_tensor_map() }
      let code = device.driver.current.tensor_map(
        start, Int32(GYRE_CUDA_MAP_BF16), UInt32(sizes.count), address,
        sizes.map { UInt64($0) }, strides.map { UInt64($0) }, box,
        [UInt32](repeating: 1, count: sizes.count), 0, Int32(swizzle),
        Int32(GYRE_CUDA_MAP_PROMOTION_128), 0)
      device.check(code, "tensor map")
      return memory.loadUnaligned(as: gyre_tensor_map.self)
    }
  }
}
