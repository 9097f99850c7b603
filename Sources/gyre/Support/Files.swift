import GyreCheckpoints

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// The few things that commands do with files themselves.
enum Files {
  enum Kind { case file, folder }

  static func kind(_ path: String) -> Kind? {
    var status = stat()
    guard stat(path, &status) == 0 else { return nil }
    return status.st_mode & S_IFMT == S_IFDIR ? .folder : .file
  }

  static func read(_ path: String) throws(CheckpointError) -> [UInt8] {
    try MappedFile(path: path).withUnsafeBytes { Array($0) }
  }

  /// The path itself, or all safetensors files of a folder in order.
  static func safetensors(_ path: String) throws -> [String] {
    switch kind(path) {
    case nil: throw CheckpointError.notFound(path: path)
    case .file?: return [path]
    case .folder?:
      guard let directory = opendir(path) else { throw Failure("'\(path)' cannot be listed") }
      defer { closedir(directory) }
      var names: [String] = []
      while let entry = readdir(directory) {
        let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
          String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
        if name.hasSuffix(".safetensors") { names.append(name) }
      }
      guard !names.isEmpty else { throw Failure("'\(path)' holds no .safetensors file") }
      return names.sorted().map { path + "/" + $0 }
    }
  }

  /// Makes a folder and those above it.
  static func makeFolder(_ path: String) throws {
    var made = path.hasPrefix("/") ? "/" : ""
    for part in path.split(separator: "/") {
      made += (made.isEmpty || made == "/" ? "" : "/") + part
      if mkdir(made, 0o777) != 0, errno != EEXIST {
        throw CheckpointError.io(operation: "create", path: made, errno: errno)
      }
    }
  }

  /// Everything on standard input.
  static func readStandardInput() -> [UInt8] {
    var bytes: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 1 << 16)
    while true {
      let count = buffer.withUnsafeMutableBytes {
        readDescriptor(STDIN_FILENO, $0.baseAddress, $0.count)
      }
      if count < 0, errno == EINTR { continue }
      guard count > 0 else { return bytes }
      bytes += buffer[..<count]
    }
  }

  /// `folder/name-1`, or the next number that is free.
  static func nextRunFolder(_ name: String, in folder: String = "runs") -> String {
    var number = 1
    while kind("\(folder)/\(name)-\(number)") != nil { number += 1 }
    return "\(folder)/\(name)-\(number)"
  }
}

private func readDescriptor(_ descriptor: Int32, _ target: UnsafeMutableRawPointer?, _ count: Int)
  -> Int
{
  read(descriptor, target, count)
}
