import CGyreCUDASources
import Synchronization

/// One entry of a kernel file, compiled with some defines.
final class CUDAFunction: Sendable {
  let file: String
  let name: String
  let defines: [String]
  /// The source, where it is made at run time and no embedded file.
  let text: String?
  /// Whether it may begin before the kernel in front has ended: it waits itself for what that one writes.
  let isEarly: Bool

  init(
    _ file: String, _ name: String, _ defines: [String] = [], text: String? = nil,
    isEarly: Bool = false
  ) {
    self.file = file
    self.name = name
    self.defines = defines
    self.text = text
    self.isEarly = isEarly
  }

  private static let known = Mutex<[String: CUDAFunction]>([:])

  /// The function for a source and defines that are known at run time, one object each.
  static func shared(
    _ file: String, _ name: String, _ defines: [String], text: String? = nil
  ) -> CUDAFunction {
    known.withLock { table in
      let key = ([file, name] + defines + [text ?? ""]).joined(separator: " ")
      if let function = table[key] { return function }
      let function = CUDAFunction(file, name, defines, text: text)
      table[key] = function
      return function
    }
  }
}

/// The embedded kernel files.
enum CUDASources {
  static let kernels = table(gyre_cuda_kernel_sources())
  static let headers = table(gyre_cuda_kernel_headers())

  private static func table(_ first: UnsafePointer<gyre_cuda_source>) -> [(
    name: String, text: String
  )] {
    var result: [(name: String, text: String)] = []
    var next = first
    while let name = next.pointee.name, let text = next.pointee.text {
      result.append((String(cString: name), String(cString: text)))
      next += 1
    }
    return result
  }

  /// The define sets that a file is compiled with: those of its line `// Variants: NAME=0..19` or
  /// `// Variants: NAME=64,128`.
  static func variants(of text: String) -> [[String]] {
    guard
      let line = text.split(separator: "\n").first(where: { $0.hasPrefix("// Variants: ") })
    else { return [[]] }
    let parts = line.dropFirst("// Variants: ".count).split(separator: "=")
    let listed = parts.last?.split(separator: ",").compactMap { Int($0) } ?? []
    if parts.count == 2, listed.count > 1 { return listed.map { ["-D\(parts[0])=\($0)"] } }
    let bounds = parts.last?.split(separator: ".").compactMap { Int($0) } ?? []
    guard parts.count == 2, bounds.count == 2, bounds[0] <= bounds[1] else { return [[]] }
    return (bounds[0]...bounds[1]).map { ["-D\(parts[0])=\($0)"] }
  }
}
