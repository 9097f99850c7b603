#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// Finds, reads and writes tokenizers on disk.
public enum TokenizerFile {
  static let jsonName = "tokenizer.json"
  static let configurationName = "tokenizer_config.json"
  /// Larger files are refused before they are read, in bytes.
  static let sizeLimit = 1 << 30

  /// Loads the tokenizer of a folder or file: `tokenizer.json`, an RWKV World vocabulary, or the byte marker.
  /// - Parameter path: a file, or a folder (the first of the three that it holds is taken).
  /// - Throws: `TokenizerError` naming the file and the place of the first mistake.
  public static func load(path: String) throws(TokenizerError) -> any Tokenizer {
    var status = stat()
    guard stat(path, &status) == 0 else { throw .notFound(path: path) }
    guard status.st_mode & S_IFMT == S_IFDIR else {
      return try parse(try read(path), file: path, roles: SpecialTokenNames())
    }
    let json = path + "/" + jsonName
    if exists(json) {
      var roles = SpecialTokenNames()
      let configuration = path + "/" + configurationName
      if exists(configuration) {
        roles = try Self.roles(try read(configuration), file: configuration)
      }
      return try parse(try read(json), file: json, roles: roles)
    }
    if exists(path + "/" + ByteTokenizer.fileName) {
      return try load(path: path + "/" + ByteTokenizer.fileName)
    }
    let vocabularies = entries(path).filter { $0.hasPrefix("rwkv_vocab") && $0.hasSuffix(".txt") }
      .sorted()
    guard let vocabulary = vocabularies.last else { throw .notFound(path: path) }
    return try load(path: path + "/" + vocabulary)
  }

  /// Reads a tokenizer from the bytes of a file; its content says which kind it is.
  /// - Parameter file: its name in errors.
  public static func parse(
    _ bytes: [UInt8], file: String, roles: SpecialTokenNames = SpecialTokenNames()
  ) throws(TokenizerError) -> any Tokenizer {
    let first = bytes.first { $0 != 0x20 && $0 != 0x0A && $0 != 0x0D && $0 != 0x09 }
    switch first {
    case UInt8(ascii: "{")?, 0xEF?:
      return try PipelineTokenizer(json: bytes, file: file, roles: roles)
    case .some(0x30...0x39): return try WorldTokenizer(vocabulary: bytes, file: file)
    default:
      guard bytes.elementsEqual(ByteTokenizer.marker.utf8) else {
        throw .malformed(
          file: file, offset: 0, reason: "neither JSON, nor an RWKV vocabulary, nor the byte marker"
        )
      }
      return ByteTokenizer()
    }
  }

  /// Writes a tokenizer into a folder that exists, so that `load(path:)` of the folder finds it.
  /// - Returns: the path of the file.
  @discardableResult
  public static func save(
    _ tokenizer: some Tokenizer, folder: String
  ) throws(TokenizerError) -> String {
    let (name, bytes) = tokenizer.serialized()
    let path = folder + "/" + name
    let temporary = path + ".partial"
    guard let file = fopen(temporary, "wb") else {
      throw .io(operation: "creating the file", path: temporary, errno: errno)
    }
    let written = fwrite(bytes, 1, bytes.count, file)
    let isClosed = fclose(file) == 0
    guard written == bytes.count, isClosed else {
      let code = errno
      remove(temporary)
      throw .io(operation: "writing", path: temporary, errno: code)
    }
    guard rename(temporary, path) == 0 else {
      throw .io(operation: "renaming", path: temporary, errno: errno)
    }
    return path
  }

  private static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }

  private static func entries(_ folder: String) -> [String] {
    guard let directory = opendir(folder) else { return [] }
    defer { closedir(directory) }
    var names: [String] = []
    while let entry = readdir(directory) {
      let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
        String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
      }
      names.append(name)
    }
    return names
  }

  private static func read(_ path: String) throws(TokenizerError) -> [UInt8] {
    guard let file = fopen(path, "rb") else {
      throw .io(operation: "opening", path: path, errno: errno)
    }
    defer { fclose(file) }
    var status = stat()
    guard fstat(fileno(file), &status) == 0 else {
      throw .io(operation: "reading", path: path, errno: errno)
    }
    let size = Int(status.st_size)
    guard size <= sizeLimit else {
      throw .malformed(
        file: path, offset: 0, reason: "\(size) bytes are more than the limit of \(sizeLimit)")
    }
    let bytes = [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
      count = size == 0 ? 0 : fread(buffer.baseAddress, 1, size, file)
    }
    guard bytes.count == size else { throw .io(operation: "reading", path: path, errno: errno) }
    return bytes
  }

  private static func roles(_ bytes: [UInt8], file: String) throws(TokenizerError)
    -> SpecialTokenNames
  {
    let root = try JSONReader.parse(bytes, file: file).root
    func name(_ value: JSONValue?) throws(TokenizerError) -> String? {
      guard let value else { return nil }
      // A role is a text or an added token with its text inside.
      return try (value["content"] ?? value).string()
    }
    return SpecialTokenNames(
      beginning: try name(root["bos_token"]), end: try name(root["eos_token"]),
      padding: try name(root["pad_token"]), unknown: try name(root["unk_token"]))
  }
}
