import GyreTensors
import Testing

@testable import GyreCheckpoints

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

@Suite struct WritingTests {
  @Test(arguments: [
    "floats.safetensors", "types.safetensors", "sharded/model-00001-of-00002.safetensors",
  ])
  func sameTensorsGiveTheBytesOfThePublicLibrary(_ name: String) throws {
    let original = try SafetensorsFile(path: fixture(name))
    var writer = SafetensorsWriter(metadata: original.metadata)
    for name in original.names.reversed() { try writer.add(name, from: original) }
    let folder = try TemporaryFolder()
    let digest = try writer.write(to: folder("copy"))
    #expect(try contents(of: folder("copy")) == contents(of: fixture(name)))
    #expect(try FileDigest(ofFile: folder("copy")) == digest)
    #expect(try folder.contents == ["copy"])
  }

  @Test func orderAsAddedIsKept() throws {
    let texts = ["b": "2", "a": "\u{1}\t", "": ""]
    var writer = SafetensorsWriter(metadata: texts, order: .asAdded)
    try writer.add("z", dtype: .uint8, shape: [3], values: [1, 2, 3] as [UInt8])
    try writer.add("a", dtype: .float32, shape: [2, 1], values: [0.5, -1] as [Float])
    let folder = try TemporaryFolder()
    try writer.write(to: folder("x"))
    let file = try SafetensorsFile(path: folder("x"))
    #expect(file.namesInFileOrder == ["z", "a"] && file.names == ["a", "z"])
    #expect(file.headerByteCount % 8 == 0 && file.metadata == texts)
    #expect(try file.readFloat32("a") == [0.5, -1])
  }

  @Test func largeContentsStreamInAnyPieces() throws {
    let values = (0..<300_001).map { Float($0) * 0.5 }
    var writer = SafetensorsWriter()
    try writer.add("pieces", dtype: .float32, shape: [values.count]) {
      (sink) throws(CheckpointError) in
      var start = 0
      var size = 1
      while start < values.count {
        let end = min(values.count, start + size)
        try sink.write(Array(values[start..<end]))
        (start, size) = (end, size * 3)
      }
    }
    try writer.add("whole", dtype: .float32, shape: [values.count], values: values)
    let folder = try TemporaryFolder()
    let digest = try writer.write(to: folder("x"))
    let file = try SafetensorsFile(path: folder("x"))
    #expect(try file.readFloat32("pieces") == values)
    #expect(try file.readFloat32("whole") == values)
    #expect(try FileDigest(ofFile: folder("x")) == digest)
  }

  @Test func impossibleTensorsAreRefused() throws {
    var writer = SafetensorsWriter()
    try writer.add("x", dtype: .float32, shape: [1], values: [Float(1)])
    #expect(throws: CheckpointError.self) {
      try writer.add("x", dtype: .float32, shape: [1], values: [Float(1)])
    }
    #expect(throws: CheckpointError.self) {
      try writer.add("__metadata__", dtype: .int8, shape: [0]) { _ in }
    }
    #expect(throws: CheckpointError.self) {
      try writer.add("n", dtype: .int8, shape: [-1]) { _ in }
    }
    #expect(throws: CheckpointError.self) {
      try writer.add("n", dtype: .int8, shape: [Int.max, 2]) { _ in }
    }
    #expect(throws: CheckpointError.self) {
      try writer.add("n", dtype: .int32, shape: [2], values: [Int32(1)])
    }
    var tensors = MemoryTensors()
    try tensors.add("m", shape: [2], [1, 2])
    #expect(throws: CheckpointError.self) { try tensors.add("m", shape: [2], [1, 2]) }
    #expect(throws: CheckpointError.self) { try tensors.add("k", shape: [3], [1, 2]) }
    #expect(try tensors.readFloat32("m") == [1, 2])
  }

  @Test func failingContentsLeaveTheOldFileAndNothingElse() throws {
    let folder = try TemporaryFolder()
    try AtomicFile.write("old", to: folder("x"))
    for count in [0, 3, 5] {
      var writer = SafetensorsWriter()
      try writer.add("t", dtype: .uint8, shape: [4]) { (sink) throws(CheckpointError) in
        try sink.write([UInt8](repeating: 1, count: count))
      }
      let error = #expect(throws: CheckpointError.self) { try writer.write(to: folder("x")) }
      guard case .invalid(subject: "tensor 't'", _) = error else {
        Issue.record("\(String(describing: error))")
        return
      }
    }
    #expect(throws: CheckpointError.notFound(path: "stop")) {
      try AtomicFile.write(to: folder("x")) { (_) throws(CheckpointError) in
        throw .notFound(path: "stop")
      }
    }
    #expect(try contents(of: folder("x")) == Array("old".utf8))
    #expect(try folder.contents == ["x"])
  }

  @Test func unwritableTargetsAreTypedErrors() throws {
    let folder = try TemporaryFolder()
    try System.createFolder(folder("taken"))
    for path in [folder("taken"), folder("none/x"), folder("x\0y")] {
      let error = #expect(throws: CheckpointError.self) { try AtomicFile.write("text", to: path) }
      guard case .io = error else {
        Issue.record("\(path): \(String(describing: error))")
        return
      }
    }
    #expect(try folder.contents == ["taken"])
  }

  #if os(Linux)
    @Test func fullVolumeLeavesThePreviousFile() throws {
      let folder = try TemporaryFolder()
      let volume = folder("volume")
      try System.createFolder(volume)
      // Only the superuser may mount; elsewhere the limit of the next test stands for the full volume.
      guard mount("tmpfs", volume, "tmpfs", 0, "size=256k") == 0 else { return }
      defer { umount(volume) }
      try expectRefusal(in: volume, byteCount: 1 << 20, code: ENOSPC)
    }
  #endif

  @Test func shortWriteLeavesThePreviousFile() throws {
    let folder = try TemporaryFolder()
    let handler = signal(SIGXFSZ, SIG_IGN)
    var limit = rlimit()
    // So high that no other test of this process meets it.
    let byteCount = 64 << 20
    #if canImport(Glibc)
      let resource = __rlimit_resource_t(RLIMIT_FSIZE.rawValue)
    #else
      let resource = RLIMIT_FSIZE
    #endif
    #expect(getrlimit(resource, &limit) == 0)
    var lowered = limit
    lowered.rlim_cur = rlim_t(byteCount)
    #expect(setrlimit(resource, &lowered) == 0)
    defer {
      setrlimit(resource, &limit)
      signal(SIGXFSZ, handler)
    }
    try expectRefusal(in: folder.path, byteCount: byteCount, code: EFBIG)
  }

  private func expectRefusal(in folder: String, byteCount: Int, code: Int32) throws {
    let path = Path.join(folder, "model.safetensors")
    var small = SafetensorsWriter()
    try small.add("x", dtype: .float32, shape: [2], values: [1, 2] as [Float])
    try small.write(to: path)
    var large = SafetensorsWriter()
    let piece = [UInt8](repeating: 7, count: 1 << 18)
    try large.add("x", dtype: .uint8, shape: [byteCount]) { (sink) throws(CheckpointError) in
      for _ in 0..<byteCount / piece.count { try sink.write(piece) }
    }
    #expect(throws: CheckpointError.io(operation: "write", path: path, errno: code)) {
      try large.write(to: path)
    }
    #expect(try System.list(folder) == ["model.safetensors"])
    #expect(try SafetensorsFile(path: path).readFloat32("x") == [1, 2])
    let store = DirectoryStore(path: Path.join(folder, "checkpoints"))
    try store.save(step: 1) { try $0.write("model.safetensors", tensors: small) }
    #expect(throws: CheckpointError.self) {
      try store.save(step: 2) { try $0.write("model.safetensors", tensors: large) }
    }
    #expect(try store.open().step == 1)
    #expect(try System.list(store.path) == ["step-00000001"])
  }

  @Test func leftoversOfDeadWritersGoAndThoseOfLivingStay() throws {
    let folder = try TemporaryFolder()
    try AtomicFile.write("kept", to: folder("x"))
    try scribble([1], to: folder(".x.tmp-0123456789abcdef"))
    try scribble([1], to: folder(".x.tmp-notatemporary!!"))
    try AtomicFile.write(to: folder("y")) { (sink) throws(CheckpointError) in
      #expect(try AtomicFile.removeLeftovers(in: folder.path) == [".x.tmp-0123456789abcdef"])
      try sink.write("alive")
    }
    #expect(try contents(of: folder("y")) == Array("alive".utf8))
    #expect(try folder.contents == [".x.tmp-notatemporary!!", "x", "y"])
  }
}
