import CGyreCUDALoader
import CGyreCUDASources
import GyreTensors
import Synchronization

/// Compiles kernel files with NVRTC at first use, keeps them on disk, and hands out functions.
final class CUDACompiler: @unchecked Sendable {
  private struct Loaded {
    var functions: [ObjectIdentifier: UnsafeMutableRawPointer] = [:]
    /// Modules by file and defines.
    var modules: [String: UnsafeMutableRawPointer] = [:]
    /// Dynamic shared memory that functions were given leave for.
    var shared: [ObjectIdentifier: Int] = [:]
  }
  private let driver: DriverCalls
  private let nvrtc: gyre_cuda_compiler
  private let cache: CubinCache
  private let device: String
  /// "sm_90a".
  let architecture: String
  /// "13.0".
  let version: String
  private let loaded = Mutex(Loaded())
  /// For tools that follow every access: lines of the source, and waits that may take as long as they like.
  private static let checking =
    CubinCache.variable("GYRE_CHECKED_KERNELS") == nil ? [] : ["-lineinfo", "-DGYRE_CHECKED"]

  /// - Throws: `unavailable` when NVRTC knows no architecture of the card.
  init(
    driver: DriverCalls, nvrtc: gyre_cuda_compiler, capability: (major: Int, minor: Int),
    cache: CubinCache, device: String
  ) throws(DeviceError) {
    self.driver = driver
    self.nvrtc = nvrtc
    self.cache = cache
    self.device = device
    var (major, minor): (Int32, Int32) = (0, 0)
    _ = nvrtc.version(&major, &minor)
    version = "\(major).\(minor)"
    let wanted = capability.major * 10 + capability.minor
    var count: Int32 = 0
    _ = nvrtc.arch_count(&count)
    var known = [Int32](repeating: 0, count: Int(count))
    _ = nvrtc.archs(&known)
    // Machine code runs on later cards of the same generation.
    guard
      let best = known.map(Int.init).filter({ $0 <= wanted && $0 / 10 == capability.major }).max()
    else {
      throw .unavailable(
        device: device,
        reason: "NVRTC \(version) has no target for compute capability "
          + "\(capability.major).\(capability.minor); install a newer one "
          + "(`pip install --upgrade nvidia-cuda-nvrtc`)")
    }
    architecture = "sm_\(best)" + (best == wanted && best >= 90 ? "a" : "")
  }

  /// The function, compiled if need be, with leave for `shared` bytes of dynamic shared memory.
  func function(_ f: CUDAFunction, shared: Int) throws(DeviceError) -> UnsafeMutableRawPointer {
    let result: Result<UnsafeMutableRawPointer, DeviceError> = loaded.withLock { state in
      do throws(DeviceError) {
        let id = ObjectIdentifier(f)
        let handle: UnsafeMutableRawPointer
        if let known = state.functions[id] { handle = known } else { handle = try find(f, &state) }
        state.functions[id] = handle
        if shared > 48 << 10, shared > state.shared[id] ?? 0 {
          let code = driver.table.function_set(
            handle, Int32(GYRE_CUDA_FUNCTION_MAX_SHARED), Int32(shared))
          guard code == 0 else { throw failed(f.name, driver.table.message(code)) }
          state.shared[id] = shared
        }
        return .success(handle)
      } catch { return .failure(error) }
    }
    return try result.get()
  }

  private func find(
    _ f: CUDAFunction, _ state: inout Loaded
  ) throws(DeviceError) -> UnsafeMutableRawPointer {
    let module = try module(f.file, f.defines, text: f.text, &state)
    var handle: gyre_cuda_handle?
    let code = driver.current.module_function(&handle, module, f.name)
    guard code == 0, let handle else { throw failed(f.name, driver.table.message(code)) }
    return handle
  }

  private func module(
    _ file: String, _ defines: [String], text: String? = nil, _ state: inout Loaded
  ) throws(DeviceError) -> UnsafeMutableRawPointer {
    let name = ([file] + defines + [text ?? ""]).joined(separator: " ")
    if let module = state.modules[name] { return module }
    let embedded = CUDASources.kernels.first { $0.name == file }
    guard let source = text.map({ (name: file, text: $0) }) ?? embedded else {
      throw failed(file, "there is no such kernel file")
    }
    let options =
      ["--gpu-architecture=\(architecture)", "--std=c++17"] + defines + Self.checking
    let key = CubinCache.key(
      [source.text] + CUDASources.headers.map(\.text) + options + [version])
    if let cubin = cache.read(key), let module = load(cubin).module {
      state.modules[name] = module
      return module
    }
    let cubin = try compile(source, options)
    let (module, code) = load(cubin)
    guard let module else { throw failed(file, driver.table.message(code)) }
    cache.write(cubin, key)
    state.modules[name] = module
    return module
  }

  private func load(_ cubin: [UInt8]) -> (module: UnsafeMutableRawPointer?, code: Int32) {
    var module: gyre_cuda_handle?
    let code = cubin.withUnsafeBytes { bytes in
      bytes.baseAddress.map { driver.current.module_load(&module, $0) } ?? 1
    }
    return (code == 0 ? module : nil, code)
  }

  private func compile(
    _ source: (name: String, text: String), _ options: [String]
  ) throws(DeviceError) -> [UInt8] {
    var program: gyre_cuda_handle?
    let headers = CUDASources.headers
    let created = withCStrings(headers.map(\.text)) { texts in
      withCStrings(headers.map(\.name)) { names in
        nvrtc.create(
          &program, source.text, source.name + ".cu", Int32(headers.count), texts, names)
      }
    }
    guard created == 0 else { throw failed(source.name, error(created)) }
    defer { _ = nvrtc.destroy(&program) }
    let compiled = withCStrings(options) { nvrtc.compile(program, Int32(options.count), $0) }
    guard compiled == 0 else {
      var size = 0
      _ = nvrtc.log_size(program, &size)
      var log = [CChar](repeating: 0, count: max(size, 1))
      _ = nvrtc.log(program, &log)
      let text = String(
        decoding: log.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
      throw failed(source.name, "\(error(compiled)): \(text)")
    }
    var size = 0
    _ = nvrtc.cubin_size(program, &size)
    var cubin = [CChar](repeating: 0, count: max(size, 1))
    let code = nvrtc.cubin(program, &cubin)
    guard code == 0, size > 0 else { throw failed(source.name, error(code)) }
    return cubin.map { UInt8(bitPattern: $0) }
  }

  /// Compiles every kernel file in every variant; tells `progress` the name of each.
  ///
  /// - Throws: `kernelFailed` with the compiler's log.
  func prepare(_ progress: (String) -> Void) throws(DeviceError) {
    for source in CUDASources.kernels {
      for defines in CUDASources.variants(of: source.text) {
        progress(([source.name] + defines).joined(separator: " "))
        let result: Result<Void, DeviceError> = loaded.withLock { state in
          do throws(DeviceError) {
            _ = try module(source.name, defines, &state)
            return .success(())
          } catch { return .failure(error) }
        }
        try result.get()
      }
    }
  }

  private func error(_ code: Int32) -> String {
    nvrtc.error_string(code).map { String(cString: $0) } ?? "NVRTC error \(code)"
  }
  private func failed(_ kernel: String, _ reason: String) -> DeviceError {
    .kernelFailed(kernel: kernel, device: device, reason: reason)
  }
}

/// Calls `body` with C strings.
func withCStrings<R>(
  _ strings: [String], _ body: (UnsafePointer<UnsafePointer<CChar>?>?) -> R
) -> R {
  let bytes = strings.map { Array($0.utf8CString) }
  func bind(_ i: Int, _ pointers: inout [UnsafePointer<CChar>?]) -> R {
    if i == bytes.count { return pointers.withUnsafeBufferPointer { body($0.baseAddress) } }
    return bytes[i].withUnsafeBufferPointer { text in
      pointers.append(text.baseAddress)
      return bind(i + 1, &pointers)
    }
  }
  var pointers: [UnsafePointer<CChar>?] = []
  pointers.reserveCapacity(max(bytes.count, 1))
  return bind(0, &pointers)
}
