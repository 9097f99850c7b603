import GyreTensors
import Testing

@testable import GyreCheckpoints

@Suite struct SafetensorsReadingTests {
  @Test func floatsOfThePublicLibraryConvertBitForBit() throws {
    let file = try SafetensorsFile(path: fixture("floats.safetensors"))
    #expect(file.metadata == ["format": "np"])
    for name in ["half", "brain", "double"] {
      let values = try file.readFloat32(name)
      let expected = try file.readFloat32(name + ".float32")
      #expect(values.count == expected.count)
      for (index, (value, reference)) in zip(values, expected).enumerated() {
        #expect(
          value.bitPattern == reference.bitPattern || (value.isNaN && reference.isNaN),
          "\(name)[\(index)]: \(value) instead of \(reference)")
      }
    }
  }

  #if !(os(macOS) && arch(x86_64))
    @Test func everyHalfConvertsAsTheStandardLibraryDoes() {
      for bits in UInt16.min ... .max {
        let expected = Float(Float16(bitPattern: bits))
        let value = FloatConversion.float32(half: bits)
        #expect(value.bitPattern == expected.bitPattern || (value.isNaN && expected.isNaN))
      }
    }
  #endif

  @Test func everyElementTypeIsInspectable() throws {
    let file = try SafetensorsFile(path: fixture("types.safetensors"))
    #expect(file.metadata == ["text": "line\nend \"q\" ü"])
    #expect(file.tensors.count == 35)
    #expect(file.tensors.allSatisfy { $0.storedType != nil })
    #expect(try file.info("y.float8_e5m2").dtype == nil)
    #expect(try file.info("y.bfloat16").dtype == .bfloat16)
    #expect(try file.info("empty").shape == [0, 5])
    #expect(try file.readFloat32("empty") == [])
    #expect(try file.readFloat32("scalar") == [0.5])
    #expect(try file.readInt32("quote \" slash / back \\ tab \t bell \u{7} é 漢 🙂") == [42])
    #expect(try file.readInt32("z.bool") == [0, 1, 0, 1, 0, 1])
    #expect(file.names == file.names.sorted() && Set(file.names) == Set(file.namesInFileOrder))
    for index in file.tensors.indices.dropFirst() {
      #expect(
        file.tensors[index].byteRange.lowerBound == file.tensors[index - 1].byteRange.upperBound)
    }
  }

  @Test func unknownElementTypesCanBeSeenButNotConverted() throws {
    let header =
      #"{"x":{"dtype":"F2_NEW","shape":[8],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#
    let file = try SafetensorsFile(bytes: file(header, data: [1, 2, 3]))
    let info = try file.info("x")
    #expect(info.typeName == "F2_NEW" && info.dtype == nil && info.byteCount == 2)
    #expect(try file.withBytes("x") { Array($0) } == [1, 2])
    #expect(try file.readInt32("y") == [3])
    let error = #expect(throws: CheckpointError.self) { try file.readFloat32("x") }
    #expect(
      error?.description.contains("'x'") == true && error?.description.contains("F2_NEW") == true)
    var writer = SafetensorsWriter()
    #expect(throws: CheckpointError.self) { try writer.add("x", from: file) }
  }

  @Test func integersOutsideInt32AreRefused() throws {
    var tensors = SafetensorsWriter()
    try tensors.add("big", dtype: .int64, shape: [2], values: [Int64(7), Int64(Int32.max) + 1])
    try tensors.add("small", dtype: .int64, shape: [3], values: [Int64(-5), 0, Int64(Int32.min)])
    let folder = try TemporaryFolder()
    try tensors.write(to: folder("x"))
    let file = try SafetensorsFile(path: folder("x"))
    #expect(try file.readInt32("small") == [-5, 0, Int32.min])
    #expect(throws: CheckpointError.self) { try file.readInt32("big") }
    #expect(throws: CheckpointError.self) { try file.readFloat32("small") }
    #expect(throws: CheckpointError.notFound(path: "\(folder("x"))#none")) {
      try file.readInt32("none")
    }
  }

  @Test func unalignedValuesAreRead() throws {
    let header =
      #"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]},"c":{"dtype":"F64","shape":[1],"data_offsets":[9,17]}} "#
    let data =
      [9] + withUnsafeBytes(of: (Float(1.5), Float(-2))) { Array($0) }
      + withUnsafeBytes(of: 0.25) { Array($0) }
    let file = try SafetensorsFile(bytes: file(header, data: data))
    #expect(try file.readFloat32("b") == [1.5, -2])
    #expect(try file.readFloat32("c") == [0.25])
    var values: [Float] = [0, 0]
    try values.withUnsafeMutableBufferPointer { buffer in try file.readFloat32("b", into: buffer) }
    #expect(values == [1.5, -2])
  }

  @Test func missingEmptyAndSpecialFilesAreTypedErrors() throws {
    let folder = try TemporaryFolder()
    #expect(throws: CheckpointError.notFound(path: folder("none"))) {
      try SafetensorsFile(path: folder("none"))
    }
    try AtomicFile.write("", to: folder("empty"))
    #expect(try MappedFile(path: folder("empty")).byteCount == 0)
    let error = #expect(throws: CheckpointError.self) { try SafetensorsFile(path: folder("empty")) }
    guard case .corrupt = error else {
      Issue.record("\(String(describing: error))")
      return
    }
    #expect(throws: CheckpointError.self) { try SafetensorsFile(path: folder.path) }
    #expect(throws: CheckpointError.self) { try SafetensorsFile(path: "/dev/zero") }
    #expect(throws: CheckpointError.self) { try SafetensorsFile(path: folder("empty") + "\0x") }
  }

  @Test func shardsReadAsOneSource() throws {
    let source: any TensorSource = try CheckpointFolder(path: fixture("sharded"))
    #expect(source.names == ["embedding", "head", "layers.0.weight"])
    #expect(source.metadata == ["format": "pt"])
    #expect(try source.readFloat32("embedding") == (0..<12).map { Float($0) / 4 })
    #expect(try source.readFloat32("head") == (0..<6).map { Float($0) })
    try source.check(against: ["embedding": [4, 3], "head": [2, 3], "layers.0.weight": [3, 3]])
    let index = try CheckpointFolder(path: fixture("sharded/model.safetensors.index.json"))
    #expect(index.files.count == 2 && index.unlisted.isEmpty)
    #expect(throws: CheckpointError.notFound(path: "\(fixture("sharded"))#none")) {
      try source.info("none")
    }
  }

  @Test func allMisfitsComeInOneError() throws {
    let source = try CheckpointFolder(path: fixture("sharded"))
    let expected = CheckpointError.mismatch(
      missing: ["a", "b"], unexpected: ["layers.0.weight"],
      reshaped: [
        ShapeMismatch(name: "embedding", expected: [3, 4], found: [4, 3]),
        ShapeMismatch(name: "head", expected: [6], found: [2, 3]),
      ])
    #expect(throws: expected) {
      try source.check(against: ["b": [], "a": [1], "embedding": [3, 4], "head": [6]])
    }
  }

  @Test func missingShardsAreAllNamed() throws {
    let folder = try TemporaryFolder()
    let index = folder("model.safetensors.index.json")
    try AtomicFile.write(
      #"{"weight_map":{"x":"m-2.safetensors","y":"m-1.safetensors","z":"m-2.safetensors"}}"#,
      to: index)
    #expect(
      throws: CheckpointError.missingShards(
        index: index, shards: ["m-1.safetensors", "m-2.safetensors"])
    ) { try CheckpointFolder(path: folder.path) }
  }

  @Test(arguments: [
    "../x", "/etc/passwd", "a/b.safetensors", "..", ".", "", ".hidden", "a\\u0000b",
  ])
  func shardNamesCannotLeaveTheFolder(_ name: String) throws {
    let folder = try TemporaryFolder()
    try AtomicFile.write(
      "{\"weight_map\":{\"x\":\"\(name)\"}}", to: folder("model.safetensors.index.json"))
    let error = #expect(throws: CheckpointError.self) { try CheckpointFolder(path: folder.path) }
    guard case .corrupt = error else {
      Issue.record("\(String(describing: error))")
      return
    }
  }

  @Test func tensorsListedButAbsentAndStoredTwiceAreErrors() throws {
    let folder = try TemporaryFolder()
    var writer = SafetensorsWriter()
    try writer.add("x", dtype: .float32, shape: [1], values: [Float(1)])
    try writer.write(to: folder("m-1.safetensors"))
    try AtomicFile.write(
      #"{"weight_map":{"x":"m-1.safetensors","y":"m-1.safetensors"}}"#,
      to: folder("model.safetensors.index.json"))
    #expect(throws: CheckpointError.mismatch(missing: ["y"], unexpected: [], reshaped: [])) {
      try CheckpointFolder(path: folder.path)
    }
    System.remove(folder("model.safetensors.index.json"))
    try writer.write(to: folder("m-2.safetensors"))
    #expect(throws: CheckpointError.self) { try CheckpointFolder(path: folder.path) }
    try writer.write(to: folder("model.safetensors"))
    #expect(try CheckpointFolder(path: folder.path).files.count == 1)
    let empty = try TemporaryFolder()
    #expect(throws: CheckpointError.notFound(path: empty("model.safetensors"))) {
      try CheckpointFolder(path: empty.path)
    }
  }
}
