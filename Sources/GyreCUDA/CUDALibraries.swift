import CGyreCUDALoader
import GyreTensors

/// NVIDIA's libraries as tables of functions. Tests fill the tables by hand.
struct CUDALibraries: @unchecked Sendable {
  var driver: gyre_cuda_driver
  var compiler: gyre_cuda_compiler
  var products: gyre_cuda_products

  /// Opens all three.
  ///
  /// - Throws: `unavailable` with what is missing, where it was looked for and how to get it.
  static func open(for device: String) throws(DeviceError) -> CUDALibraries {
    CUDALibraries(
      driver: try load(device, gyre_cuda_load_driver),
      compiler: try load(device, gyre_cuda_load_compiler),
      products: try load(device, gyre_cuda_load_products))
  }

  static func load<Table>(
    _ device: String,
    _ open: (UnsafeMutablePointer<gyre_cuda_library_status>) -> UnsafePointer<Table>?
  ) throws(DeviceError) -> Table {
    var status = gyre_cuda_library_status()
    if let table = open(&status) { return table.pointee }
    throw .unavailable(device: device, reason: text(of: &status.message))
  }

  /// A C array of characters as text.
  static func text<Characters>(of characters: inout Characters) -> String {
    withUnsafeBytes(of: &characters) { bytes in
      String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }
  }
}

extension gyre_cuda_driver {
  /// "CUDA_ERROR_OUT_OF_MEMORY: out of memory".
  func message(_ code: Int32) -> String {
    var name: UnsafePointer<CChar>?
    var text: UnsafePointer<CChar>?
    _ = error_name(code, &name)
    _ = error_string(code, &text)
    return (name.map { String(cString: $0) } ?? "error \(code)")
      + (text.map { ": " + String(cString: $0) } ?? "")
  }
}
