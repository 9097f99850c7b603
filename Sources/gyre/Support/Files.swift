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

  /// Everything on standard input.
  static func readStandardInput() -> [UInt8] {
    var bytes: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 1 << 16)
    while true {
      let count = buffer.withUnsafeMutableBytes { readDescriptor(STDIN_FILENO, $0.baseAddress, $0.count) }
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

private func readDescriptor(_ descriptor: Int32, _ target: UnsafeMutableRawPointer?, _ count: Int) -> Int {
  read(descriptor, target, count)
}
