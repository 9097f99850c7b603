import CGyreCUDALoader
import CGyreCUDASources
import GyreTensors

extension CUDALaunch {
  /// What the copy engine of sm_90 needs to bring a tensor [batch, rows, heads, channels] of bfloat16 by boxes of 64
  /// rows and 64 channels of a head; zeros beyond its ends. The address and rows are multiples of 16 bytes.
  func map(
    _ address: UInt64, batch: Int = 1, rows: Int, heads: Int = 1, channels: Int
  ) -> gyre_tensor_map {
    let sizes = [channels, heads, rows, batch].map { UInt64($0) }
    let row = 2 * channels * heads
    let strides = [2 * channels, row, row * rows].map { UInt64($0) }
    let size = MemoryLayout<gyre_tensor_map>.size
    return withUnsafeTemporaryAllocation(byteCount: size, alignment: 64) { memory in
      memory.initializeMemory(as: UInt8.self, repeating: 0)
      guard let start = memory.baseAddress else { return gyre_tensor_map() }
      let code = device.driver.current.tensor_map(
        start, Int32(GYRE_CUDA_MAP_BF16), 4, address, sizes, strides, [64, 1, 64, 1], [1, 1, 1, 1],
        0, Int32(GYRE_CUDA_MAP_SWIZZLE_128), Int32(GYRE_CUDA_MAP_PROMOTION_128), 0)
      device.check(code, "tensor map")
      return memory.loadUnaligned(as: gyre_tensor_map.self)
    }
  }
}
