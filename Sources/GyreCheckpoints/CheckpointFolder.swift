// Published models: one safetensors file, or shards with `model.safetensors.index.json`.

import GyreTensors

/// The tensors of a published model, whatever it is stored in.
///
/// Opens a `.safetensors` file, an index (`….safetensors.index.json`), or a folder that holds, in this order of
/// preference: `model.safetensors.index.json`, `model.safetensors`, any other index, or any `.safetensors` files.
public struct CheckpointFolder: TensorSource {
  /// The path that was opened.
  public let path: String
  /// The open files; one unless sharded.
  public let files: [SafetensorsFile]
  /// Texts of all files; the first file wins where they differ.
  public let metadata: [String: String]
  /// Names of all tensors, sorted.
  public let names: [String]
  /// Tensors in the shards that the index does not list; they cannot be read through this value.
  public let unlisted: [String]

  private let fileOfName: [String: Int]

  /// Opens a file, an index or a folder.
  ///
  /// - Throws: `notFound`; `missingShards` with all of them; `mismatch` if the index lists tensors that their shards
  ///   lack; `corrupt` for violations of the formats, tensors stored twice, and shard names that leave the folder.
  public init(path: String) throws(CheckpointError) {
    self = try Self.open(path)
  }

  private static func open(_ path: String) throws(CheckpointError) -> Self {
    switch System.kind(of: path) {
    case nil: throw .notFound(path: path)
    case .folder?: try open(folder: path)
    case .file?, .other?:
      if path.hasSuffix(".json") {
        try Self(path: path, index: path)
      } else {
        try Self(path: path, files: [SafetensorsFile(path: path)])
      }
    }
  }

  private static func open(folder: String) throws(CheckpointError) -> Self {
    let names = try System.list(folder).filter { !$0.hasPrefix(".") }
    let indices = names.filter { $0.hasSuffix(".safetensors.index.json") }
    let files = names.filter { $0.hasSuffix(".safetensors") }
    if indices.contains("model.safetensors.index.json") {
      return try Self(path: folder, index: Path.join(folder, "model.safetensors.index.json"))
    }
    if files.contains("model.safetensors") {
      return try Self(
        path: folder, files: [SafetensorsFile(path: Path.join(folder, "model.safetensors"))])
    }
    if indices.count == 1 { return try Self(path: folder, index: Path.join(folder, indices[0])) }
    guard !files.isEmpty else { throw .notFound(path: Path.join(folder, "model.safetensors")) }
    var opened: [SafetensorsFile] = []
    for file in files { opened.append(try SafetensorsFile(path: Path.join(folder, file))) }
    return try Self(path: folder, files: opened)
  }

  /// Files without an index: every tensor counts, none may be stored twice.
  private init(path: String, files: [SafetensorsFile]) throws(CheckpointError) {
    var fileOfName: [String: Int] = [:]
    for (index, file) in files.enumerated() {
      for tensor in file.tensors {
        if let other = fileOfName.updateValue(index, forKey: tensor.name) {
          throw .corrupt(
            file: file.name, offset: tensor.byteRange.lowerBound,
            reason: "tensor '\(tensor.name)' is also in '\(files[other].name)'")
        }
      }
    }
    self.init(path: path, files: files, fileOfName: fileOfName)
  }

  private init(path: String, index: String) throws(CheckpointError) {
    let shardOfName = try Self.readIndex(index)
    let shards = Set(shardOfName.values).sorted()
    let folder = Path.folder(of: index)
    let missing = shards.filter { System.kind(of: Path.join(folder, $0)) == nil }
    guard missing.isEmpty else { throw .missingShards(index: index, shards: missing) }
    var files: [SafetensorsFile] = []
    for shard in shards { files.append(try SafetensorsFile(path: Path.join(folder, shard))) }
    let positions = Dictionary(uniqueKeysWithValues: zip(shards, shards.indices))
    let fileOfName = shardOfName.compactMapValues { positions[$0] }
    let absent = fileOfName.filter { !files[$0.value].contains($0.key) }.keys
    guard absent.isEmpty else {
      throw .mismatch(missing: absent.sorted(), unexpected: [], reshaped: [])
    }
    self.init(path: path, files: files, fileOfName: fileOfName)
  }

  private init(path: String, files: [SafetensorsFile], fileOfName: [String: Int]) {
    self.path = path
    self.files = files
    self.fileOfName = fileOfName
    names = fileOfName.keys.sorted()
    unlisted = files.enumerated().flatMap { index, file in
      file.tensors.map(\.name).filter { fileOfName[$0] != index }
    }.sorted()
    metadata = files.reduce(into: [:]) { all, file in all.merge(file.metadata) { first, _ in first }
    }
  }

  /// The `weight_map` of an index: shard file name by tensor name.
  private static func readIndex(_ path: String) throws(CheckpointError) -> [String: String] {
    let file = try MappedFile(path: path)
    return try file.withUnsafeBytes { (bytes) throws(CheckpointError) in
      guard bytes.count <= SafetensorsHeader.maximumByteCount else {
        throw .corrupt(file: path, offset: 0, reason: "an index of \(bytes.count) bytes")
      }
      var reader = JSONReader(bytes, file: path)
      var shards: [String: String]?
      try reader.object { (reader, key, _) throws(CheckpointError) in
        if key == "weight_map" {
          shards = try weightMap(&reader)
        } else {
          try reader.skipValue()
        }
      }
      try reader.end()
      guard let shards else { throw .corrupt(file: path, offset: 0, reason: "no weight_map") }
      return shards
    }
  }

  private static func weightMap(
    _ reader: inout JSONReader
  ) throws(CheckpointError) -> [String: String] {
    var map: [String: String] = [:]
    try reader.object { (reader, name, offset) throws(CheckpointError) in
      let shard = try reader.string()
      guard Path.isPlainFileName(shard) else {
        throw reader.corrupt("shard '\(shard)' is not a plain file name", at: offset)
      }
      map[name] = shard
    }
    return map
  }

  public func contains(_ name: String) -> Bool { fileOfName[name] != nil }

  public func info(_ name: String) throws(CheckpointError) -> TensorInfo {
    try file(of: name).info(name)
  }

  public func withBytes<Result>(
    _ name: String, _ body: (UnsafeRawBufferPointer) throws(CheckpointError) -> Result
  ) throws(CheckpointError) -> Result {
    try file(of: name).withBytes(name, body)
  }

  private func file(of name: String) throws(CheckpointError) -> SafetensorsFile {
    guard let index = fileOfName[name] else { throw .notFound(path: "\(path)#\(name)") }
    return files[index]
  }
}
