// Reading one safetensors file, mapped or in memory.

import GyreTensors

/// An open safetensors file: a checked table of contents and zero-copy access to the values.
///
/// Opening reads the header only; it rejects duplicate names (also names that differ in Unicode normalisation only),
/// overlaps, holes, sizes that do not follow from type and shape, and trailing bytes.
public struct SafetensorsFile: TensorSource {
  /// The path, or the name given to bytes in memory.
  public let name: String
  /// Free texts of the header's `__metadata__`.
  public let metadata: [String: String]
  /// All tensors, in the order of their data.
  public let tensors: [TensorInfo]
  /// Bytes before the first value.
  public let headerByteCount: Int

  private let contents: FileContents
  private let indexOfName: [String: Int]

  /// Maps the file at `path` and checks its header.
  ///
  /// - Throws: `notFound`, `io`, `unsupported` for a folder, `corrupt` for every violation of the format.
  public init(path: String) throws(CheckpointError) {
    let mapped = try MappedFile(path: path)
    let header = try mapped.withUnsafeBytes { (bytes) throws(CheckpointError) in
      try SafetensorsHeader(file: bytes, name: path)
    }
    self.init(name: path, header: header, contents: .mapped(mapped))
  }

  /// Checks a file that is already in memory; `name` is what errors call it.
  public init(bytes: [UInt8], name: String = "memory") throws(CheckpointError) {
    let header = try bytes.withUnsafeBufferPointer { (bytes) throws(CheckpointError) in
      try SafetensorsHeader(file: UnsafeRawBufferPointer(bytes), name: name)
    }
    self.init(name: name, header: header, contents: .bytes(bytes))
  }

  private init(name: String, header: SafetensorsHeader, contents: FileContents) {
    self.name = name
    metadata = header.metadata
    tensors = header.tensors
    headerByteCount = header.dataOffset
    self.contents = contents
    // The header's names are unique, so nothing is dropped here.
    indexOfName = Dictionary(
      header.tensors.enumerated().map { ($1.name, $0) }, uniquingKeysWith: { first, _ in first })
  }

  /// Names of all tensors, sorted.
  public var names: [String] { tensors.map(\.name).sorted() }

  /// Names of all tensors in the order of their data.
  public var namesInFileOrder: [String] { tensors.map(\.name) }

  public func info(_ name: String) throws(CheckpointError) -> TensorInfo {
    guard let index = indexOfName[name] else { throw .notFound(path: "\(self.name)#\(name)") }
    return tensors[index]
  }

  public func contains(_ name: String) -> Bool { indexOfName[name] != nil }

  public func withBytes<Result>(
    _ name: String, _ body: (UnsafeRawBufferPointer) throws(CheckpointError) -> Result
  ) throws(CheckpointError) -> Result {
    try contents.withBytes(try info(name).byteRange, body)
  }

  /// Whether the values lie in a mapped file, at addresses that hold while this value lives.
  public var isMapped: Bool { contents.isMapped }

  /// Asks the kernel to load a tensor's pages ahead of use; does nothing for bytes in memory.
  public func prefetch(_ name: String) throws(CheckpointError) {
    let range = try info(name).byteRange
    if case .mapped(let file) = contents { file.prefetch(range) }
  }
}
