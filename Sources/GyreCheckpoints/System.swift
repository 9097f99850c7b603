// POSIX calls with typed errors: descriptors, folders, durable renames. Nothing here knows a file format.

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// An open file descriptor; closed when it goes out of scope.
struct Descriptor: ~Copyable {
  let raw: Int32
  /// The name that errors show; may differ from the name that was opened (temporary files).
  let path: String

  private init(raw: Int32, path: String) {
    self.raw = raw
    self.path = path
  }

  deinit { _ = System.closeFile(raw) }

  static func open(_ path: String) throws(CheckpointError) -> Descriptor {
    try open(path, flags: O_RDONLY, operation: "open", shownAs: path)
  }

  static func openFolder(_ path: String) throws(CheckpointError) -> Descriptor {
    try open(path, flags: O_RDONLY | O_DIRECTORY, operation: "open", shownAs: path)
  }

  /// Creates a file that must not exist yet.
  static func create(_ path: String, shownAs shown: String) throws(CheckpointError) -> Descriptor {
    try open(path, flags: O_WRONLY | O_CREAT | O_EXCL, operation: "create", shownAs: shown)
  }

  private static func open(
    _ path: String, flags: Int32, operation: String, shownAs shown: String
  ) throws(CheckpointError) -> Descriptor {
    // An embedded NUL would silently cut the name that the kernel sees.
    guard !path.utf8.contains(0) else {
      throw .io(operation: operation, path: shown, errno: EINVAL)
    }
    while true {
      let raw = System.openFile(path, flags | O_CLOEXEC, 0o644)
      if raw >= 0 { return Descriptor(raw: raw, path: shown) }
      if errno == EINTR { continue }
      if errno == ENOENT && flags & O_CREAT == 0 { throw .notFound(path: shown) }
      throw .io(operation: operation, path: shown, errno: errno)
    }
  }

  func status() throws(CheckpointError) -> stat {
    var status = stat()
    guard fstat(raw, &status) == 0 else {
      throw .io(operation: "inspect", path: path, errno: errno)
    }
    return status
  }

  func size() throws(CheckpointError) -> Int { Int(try status().st_size) }

  /// Writes everything or throws; short writes are continued.
  func write(_ bytes: UnsafeRawBufferPointer) throws(CheckpointError) {
    var rest = bytes[...]
    while !rest.isEmpty {
      let part = UnsafeRawBufferPointer(rebasing: rest.prefix(1 << 30))
      let written = System.writeFile(raw, part.baseAddress, part.count)
      if written < 0 {
        if errno == EINTR { continue }
        throw .io(operation: "write", path: path, errno: errno)
      }
      guard written > 0 else { throw .io(operation: "write", path: path, errno: EIO) }
      rest = rest.dropFirst(written)
    }
  }

  /// Reads up to `buffer.count` bytes; 0 at the end of the file.
  func read(into buffer: UnsafeMutableRawBufferPointer) throws(CheckpointError) -> Int {
    while true {
      let count = System.readFile(raw, buffer.baseAddress, buffer.count)
      if count >= 0 { return count }
      if errno != EINTR { throw .io(operation: "read", path: path, errno: errno) }
    }
  }

  /// Reads up to `buffer.count` bytes from an offset on; 0 at the end of the file.
  func read(
    into buffer: UnsafeMutableRawBufferPointer, at offset: Int
  ) throws(CheckpointError) -> Int {
    while true {
      let count = System.readFile(raw, buffer.baseAddress, buffer.count, at: offset)
      if count >= 0 { return count }
      if errno != EINTR { throw .io(operation: "read", path: path, errno: errno) }
    }
  }

  /// Waits until the contents are on the medium.
  func synchronize() throws(CheckpointError) {
    #if canImport(Darwin)
      // fsync alone leaves the data in the drive's cache there.
      if fcntl(raw, F_FULLFSYNC) == 0 { return }
    #endif
    while fsync(raw) != 0 {
      if errno == EINTR { continue }
      // Some file systems cannot synchronise folders; they say so with these two.
      if errno == EINVAL || errno == ENOTSUP { return }
      throw .io(operation: "synchronize", path: path, errno: errno)
    }
  }

  /// Takes the advisory lock that marks a temporary as in use; the kernel drops it when the process dies.
  ///
  /// - Returns: false only if someone else holds it; file systems without locks answer true.
  func tryLock() -> Bool {
    while flock(raw, LOCK_EX | LOCK_NB) != 0 {
      if errno == EINTR { continue }
      return errno != EWOULDBLOCK
    }
    return true
  }

  /// Whether `path` still names this very file.
  func isNamed(_ path: String) -> Bool {
    var (here, there) = (stat(), stat())
    guard fstat(raw, &here) == 0, lstat(path, &there) == 0 else { return false }
    return here.st_ino == there.st_ino && here.st_dev == there.st_dev
  }
}

/// Free functions of the operating system with typed errors.
enum System {
  enum Kind { case file, folder, other }

  // Members named like the call hide the global ones, hence these.
  static func openFile(_ path: String, _ flags: Int32, _ mode: mode_t) -> Int32 {
    open(path, flags, mode)
  }
  static func writeFile(_ raw: Int32, _ base: UnsafeRawPointer?, _ count: Int) -> Int {
    write(raw, base, count)
  }
  static func readFile(_ raw: Int32, _ base: UnsafeMutableRawPointer?, _ count: Int) -> Int {
    read(raw, base, count)
  }
  static func readFile(
    _ raw: Int32, _ base: UnsafeMutableRawPointer?, _ count: Int, at offset: Int
  ) -> Int {
    pread(raw, base, count, off_t(offset))
  }
  static func closeFile(_ raw: Int32) -> Int32 { close(raw) }

  static func message(_ code: Int32) -> String { String(cString: strerror(code)) }

  static func advice(_ code: Int32) -> String {
    switch code {
    case ENOSPC, EDQUOT: "; free space on the volume and save again, earlier files are untouched"
    case EFBIG: "; the file is larger than the volume or the process limit allows"
    case EACCES, EPERM: "; check the permissions of the folder"
    case EROFS: "; the volume is read-only, choose another folder"
    case EMFILE, ENFILE: "; too many open files, raise the limit (ulimit -n)"
    case EIO: "; the medium reported an error, check the disk"
    default: ""
    }
  }

  /// Follows symbolic links; nil if there is nothing.
  static func kind(of path: String) -> Kind? {
    var status = stat()
    guard stat(path, &status) == 0 else { return nil }
    return kind(status)
  }

  static func kind(_ status: stat) -> Kind {
    switch status.st_mode & S_IFMT {
    case S_IFREG: .file
    case S_IFDIR: .folder
    default: .other
    }
  }

  /// Names in a folder without "." and "..", sorted.
  static func list(_ folder: String) throws(CheckpointError) -> [String] {
    guard let stream = opendir(folder) else {
      if errno == ENOENT { throw .notFound(path: folder) }
      throw .io(operation: "list", path: folder, errno: errno)
    }
    defer { closedir(stream) }
    var names: [String] = []
    errno = 0
    while let entry = readdir(stream) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: MemoryLayout.size(ofValue: $0.pointee)) {
          String(cString: $0)
        }
      }
      if name != "." && name != ".." { names.append(name) }
      errno = 0
    }
    guard errno == 0 else { throw .io(operation: "list", path: folder, errno: errno) }
    return names.sorted()
  }

  /// Creates the folder and its ancestors; each new entry is made durable.
  static func createFolders(_ path: String) throws(CheckpointError) {
    if kind(of: path) == .folder { return }
    let parent = Path.folder(of: path)
    if parent != path { try createFolders(parent) }
    guard mkdir(path, 0o755) == 0 || errno == EEXIST else {
      throw .io(operation: "create folder", path: path, errno: errno)
    }
    try synchronizeFolder(parent)
  }

  /// Creates a folder that must not exist yet.
  static func createFolder(_ path: String) throws(CheckpointError) {
    guard mkdir(path, 0o755) == 0 else {
      throw .io(operation: "create folder", path: path, errno: errno)
    }
  }

  static func synchronizeFolder(_ path: String) throws(CheckpointError) {
    let folder = try Descriptor.openFolder(path)
    try folder.synchronize()
  }

  static func rename(_ old: String, to new: String) throws(CheckpointError) {
    guard renameFile(old, new) == 0 else {
      throw .io(operation: "rename", path: new, errno: errno)
    }
  }

  private static func renameFile(_ old: String, _ new: String) -> Int32 {
    #if canImport(Glibc)
      Glibc.rename(old, new)
    #elseif canImport(Musl)
      Musl.rename(old, new)
    #else
      Darwin.rename(old, new)
    #endif
  }

  /// Swaps two names in one step; false where the file system cannot.
  static func exchange(_ first: String, _ second: String) -> Bool {
    #if canImport(Darwin)
      renamex_np(first, second, UInt32(RENAME_SWAP)) == 0
    #elseif canImport(Glibc)
      // Not in the Swift overlay of libc (a GNU extension), and absent from old ones: looked up by name.
      guard let symbol = dlsym(nil, "renameat2") else { return false }
      typealias Rename =
        @convention(c) (
          Int32, UnsafePointer<CChar>, Int32, UnsafePointer<CChar>, UInt32
        ) -> Int32
      let exchangeFlag: UInt32 = 2  // RENAME_EXCHANGE
      return unsafeBitCast(symbol, to: Rename.self)(
        AT_FDCWD, first, AT_FDCWD, second, exchangeFlag) == 0
    #else
      false
    #endif
  }

  /// Removes a name if it is there; a leftover is harmless, so failure is not an error.
  static func remove(_ path: String) { _ = unlink(path) }

  /// Removes a file or a whole folder without following symbolic links; absent is fine.
  static func removeTree(_ path: String) throws(CheckpointError) {
    var status = stat()
    guard lstat(path, &status) == 0 else {
      if errno == ENOENT { return }
      throw .io(operation: "inspect", path: path, errno: errno)
    }
    let isFolder = kind(status) == .folder
    if isFolder {
      for name in try list(path) { try removeTree(Path.join(path, name)) }
    }
    guard (isFolder ? rmdir(path) : unlink(path)) == 0 || errno == ENOENT else {
      throw .io(operation: "remove", path: path, errno: errno)
    }
  }
}

/// Text operations on paths.
enum Path {
  static func join(_ folder: String, _ name: String) -> String {
    folder.hasSuffix("/") ? folder + name : folder + "/" + name
  }

  static func folder(of path: String) -> String {
    let trimmed = trimmingSlashes(path)
    guard let slash = trimmed.lastIndex(of: "/") else { return path.hasPrefix("/") ? "/" : "." }
    return slash == trimmed.startIndex ? "/" : String(trimmed[..<slash])
  }

  static func name(of path: String) -> String {
    let trimmed = trimmingSlashes(path)
    return trimmed.lastIndex(of: "/").map { String(trimmed[trimmed.index(after: $0)...]) }
      ?? String(trimmed)
  }

  private static func trimmingSlashes(_ path: String) -> Substring {
    var trimmed = path[...]
    while trimmed.count > 1 && trimmed.hasSuffix("/") { trimmed = trimmed.dropLast() }
    return trimmed
  }

  /// Whether a name stays inside its folder: no separators, no dots that climb, nothing hidden.
  static func isPlainFileName(_ name: String) -> Bool {
    !name.isEmpty && !name.hasPrefix(".") && name.utf8.count <= 200
      && !name.utf8.contains { $0 == 0x2f || $0 < 0x20 || $0 == 0x7f }
  }

  /// 16 hexadecimal digits for names of temporaries.
  static func randomSuffix() -> String {
    let digits = String(UInt64.random(in: .min ... .max), radix: 16)
    return String(repeating: "0", count: 16 - digits.count) + digits
  }
}
