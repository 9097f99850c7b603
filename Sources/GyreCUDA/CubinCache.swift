#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// Compiled kernels on disk, one file a key. A damaged file reads as absent and is written again; a
/// folder that cannot be written to only costs time.
struct CubinCache: Sendable {
  /// `$GYRE_CACHE`, else `$XDG_CACHE_HOME/gyre`, else `~/.cache/gyre`; nil without a home.
  static var defaultFolder: String? {
    variable("GYRE_CACHE") ?? variable("XDG_CACHE_HOME").map { $0 + "/gyre" }
      ?? variable("HOME").map { $0 + "/.cache/gyre" }
  }

  /// A variable of the environment that is there and not empty.
  static func variable(_ name: String) -> String? {
    getenv(name).map { String(cString: $0) }.flatMap { $0.isEmpty ? nil : $0 }
  }

  private static let magic: [UInt8] = Array("GYRECUBIN1".utf8)
  let folder: String?

  init(folder: String?) { self.folder = folder }

  /// A name for everything that a compilation depends on.
  static func key(_ parts: [String]) -> String {
    // Two FNV-1a hashes from different starts: 128 bits against accidents, not against enemies.
    var (a, b): (UInt64, UInt64) = (0xcbf2_9ce4_8422_2325, 0x6c62_272e_07bb_0142)
    for part in parts {
      for byte in Array(part.utf8) + [0] {
        a = (a ^ UInt64(byte)) &* 0x100_0000_01b3
        b = (b ^ UInt64(byte)) &* 0x100_0000_01b3 &+ (a >> 7)
      }
    }
    return [a, b].map { word in
      let digits = String(word, radix: 16)
      return String(repeating: "0", count: 16 - digits.count) + digits
    }.joined()
  }

  private func path(_ key: String) -> String? { folder.map { $0 + "/kernels/" + key + ".cubin" } }

  private static func checksum(_ bytes: some Sequence<UInt8>) -> [UInt8] {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    for byte in bytes { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
    return (0..<8).map { UInt8(truncatingIfNeeded: hash >> (8 * UInt64($0))) }
  }

  /// The compiled kernels under a key; nil where there are none or the file is damaged.
  func read(_ key: String) -> [UInt8]? {
    guard let path = path(key) else { return nil }
    let file = open(path, O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { return nil }
    defer { close(file) }
    var bytes: [UInt8] = []
    var block = [UInt8](repeating: 0, count: 1 << 18)
    while true {
      let count = unsafeRead(file, &block)
      guard count >= 0 else { return nil }
      if count == 0 { break }
      bytes += block[..<count]
    }
    let header = Self.magic.count + 8
    guard bytes.count > header, Array(bytes[..<Self.magic.count]) == Self.magic,
      Array(bytes[Self.magic.count..<header]) == Self.checksum(bytes[header...])
    else { return nil }
    return Array(bytes[header...])
  }

  /// Keeps compiled kernels; silently does not where the folder cannot be written to.
  func write(_ cubin: [UInt8], _ key: String) {
    guard let folder, let path = path(key) else { return }
    var built = ""
    for part in (folder + "/kernels").split(separator: "/", omittingEmptySubsequences: false) {
      built += part + "/"
      if built != "/" { mkdir(built, 0o755) }
    }
    let temporary = path + ".\(getpid())"
    let file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
    guard file >= 0 else { return }
    let bytes = Self.magic + Self.checksum(cubin) + cubin
    let isWhole = unsafeWrite(file, bytes)
    close(file)
    if !isWhole || rename(temporary, path) != 0 { unlink(temporary) }
  }
}

private func unsafeRead(_ file: Int32, _ block: inout [UInt8]) -> Int {
  block.withUnsafeMutableBytes { read(file, $0.baseAddress, $0.count) }
}

private func unsafeWrite(_ file: Int32, _ bytes: [UInt8]) -> Bool {
  bytes.withUnsafeBytes { memory in
    var written = 0
    while written < memory.count {
      let count = write(file, memory.baseAddress.map { $0 + written }, memory.count - written)
      if count <= 0 { return false }
      written += count
    }
    return true
  }
}
