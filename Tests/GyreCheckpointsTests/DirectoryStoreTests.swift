import GyreTensors
import Testing

@testable import GyreCheckpoints

@Suite struct DirectoryStoreTests {
  private func save(_ store: DirectoryStore, _ step: Int, value: Float? = nil) throws {
    var tensors = SafetensorsWriter(metadata: ["step": "\(step)"])
    try tensors.add(
      "w", dtype: .float32, shape: [3], values: [Float](repeating: value ?? Float(step), count: 3))
    try store.save(step: step) { writer in
      try writer.write("model.safetensors", tensors: tensors)
      try writer.write("state.json", text: "{\"step\": \(step)}\n")
    }
  }

  private func value(_ checkpoint: StoredCheckpoint) throws -> Float {
    try checkpoint.tensors("model.safetensors").readFloat32("w")[0]
  }

  @Test func whatIsSavedIsLoaded() throws {
    let folder = try TemporaryFolder()
    let store = DirectoryStore(path: folder("runs/a/checkpoints"))
    #expect(throws: CheckpointError.self) { try store.open() }
    #expect(try store.steps().isEmpty)
    for step in [7, 1234, 123_456_789] { try save(store, step) }
    #expect(
      try System.list(store.path) == ["step-00000007", "step-00001234", "step-123456789"])
    #expect(try store.steps() == [7, 1234, 123_456_789])
    let newest = try store.open()
    #expect(newest.step == 123_456_789 && newest.skipped.isEmpty)
    #expect(newest.files == ["model.safetensors", "state.json"])
    #expect(try value(newest) == Float(123_456_789))
    let older = try store.open(step: 1234)
    #expect(try older.bytes(of: "state.json") == Array("{\"step\": 1234}\n".utf8))
    #expect(older.path == Path.join(store.path, "step-00001234"))
    #expect(throws: CheckpointError.notFound(path: "\(older.path)/none")) {
      try older.path(of: "none")
    }
    #expect(throws: CheckpointError.notFound(path: "\(store.path)/step-00000008")) {
      try store.open(step: 8)
    }
    #expect(try StoredCheckpoint(path: older.path).manifest == older.manifest)
  }

  @Test(arguments: [true, false])
  func savingAStepAgainReplacesIt(exchangesNames: Bool) throws {
    let folder = try TemporaryFolder()
    var store = DirectoryStore(path: folder.path)
    store.exchangesNames = exchangesNames
    try save(store, 5, value: 1)
    let before = try store.open()
    let mapped = try before.tensors("model.safetensors")
    try save(store, 5, value: 2)
    #expect(try value(store.open()) == 2)
    #expect(try mapped.readFloat32("w") == [1, 1, 1])
    #expect(try folder.contents == ["step-00000005"])
  }

  @Test func everyFlippedBitOfEveryFileIsNoticed() throws {
    let folder = try TemporaryFolder()
    let store = DirectoryStore(path: folder.path)
    try save(store, 1)
    try save(store, 2)
    let good = try store.open()
    var random = SeededGenerator(seed: 5)
    for name in good.files + [CheckpointManifest.fileName] {
      let path = Path.join(good.path, name)
      let original = try contents(of: path)
      for position in original.indices {
        var damaged = original
        damaged[position] ^= 1 << UInt8.random(in: 0..<8, using: &random)
        try scribble(damaged, to: path)
        let (latest, rejected) = try store.latest()
        // White space of the manifest may change into other white space.
        if latest?.step == 2 {
          #expect(latest?.manifest == good.manifest && name == CheckpointManifest.fileName)
          continue
        }
        #expect(latest?.step == 1 && rejected.map(\.step) == [2])
        #expect(throws: CheckpointError.self) { try store.open(step: 2) }
      }
      try scribble(original, to: path)
      for count in original.indices {
        try scribble(Array(original[..<count]), to: path)
        if name == CheckpointManifest.fileName && original[count...].allSatisfy({ $0 == 0x0a }) {
          continue
        }
        #expect(
          try store.latest(verifying: .sizes).checkpoint?.step == 1, "\(name) cut to \(count)")
      }
      System.remove(path)
      #expect(try store.open().skipped.map(\.step) == [2])
      try scribble(original, to: path)
    }
    #expect(try store.open().step == 2)
  }

  @Test func allDamagedSaysWhy() throws {
    let folder = try TemporaryFolder()
    let store = DirectoryStore(path: folder.path)
    try save(store, 3)
    try scribble([0], to: folder("step-00000003/state.json"))
    let error = #expect(throws: CheckpointError.self) { try store.open() }
    #expect(error?.description.contains("state.json") == true)
  }

  /// What SIGKILL leaves at each stage of a save: the old checkpoints load, the next save cleans up.
  @Test func deathAtAnyStageLeavesTheOldCheckpoint() throws {
    let temporary = ".step-00000002.tmp-00000000deadbeef"
    for stage in 0..<6 {
      let folder = try TemporaryFolder()
      let store = DirectoryStore(path: folder.path)
      try save(store, 1)
      try save(store, 2)
      let finished = folder("step-00000002")
      try System.rename(finished, to: folder(temporary))
      let dead = folder(temporary)
      switch stage {
      case 0:  // nothing but the folder
        try System.removeTree(dead)
        try System.createFolder(dead)
      case 1:  // half of the first file
        let model = try contents(of: Path.join(dead, "model.safetensors"))
        try System.removeTree(dead)
        try System.createFolder(dead)
        try scribble(Array(model[..<(model.count / 2)]), to: Path.join(dead, "model.safetensors"))
      case 2: System.remove(Path.join(dead, "manifest.json"))
      case 3:  // half of the manifest
        let manifest = try contents(of: Path.join(dead, "manifest.json"))
        try scribble(Array(manifest[..<(manifest.count / 2)]), to: Path.join(dead, "manifest.json"))
      case 4: break  // complete, not yet renamed
      default:  // replaced step 1, the old one not yet removed
        try System.rename(folder("step-00000001"), to: folder("step-00000001.replaced"))
      }
      #expect(try store.open().step == 1, "stage \(stage)")
      #expect(try value(store.open()) == 1)
      #expect(try store.steps() == [1])
      try save(store, 3)
      #expect(try folder.contents == ["step-00000001", "step-00000003"], "stage \(stage)")
      #expect(try store.open(step: 1).step == 1)
    }
  }

  @Test func failedSavesLeaveNothing() throws {
    struct Other: Error {}
    let folder = try TemporaryFolder()
    let store = DirectoryStore(path: folder.path)
    try save(store, 1)
    #expect(throws: CheckpointError.contentFailed(step: 2, reason: "Other()")) {
      try store.save(step: 2) { writer in
        try writer.write("a", text: "text")
        throw Other()
      }
    }
    #expect(throws: CheckpointError.notFound(path: "stop")) {
      try store.save(step: 1) { _ in throw CheckpointError.notFound(path: "stop") }
    }
    #expect(throws: CheckpointError.self) { try store.save(step: -1) { _ in } }
    for name in ["", "..", "a/b", ".hidden", "manifest.json", "/abs"] {
      #expect(throws: CheckpointError.self, "\(name)") {
        try store.save(step: 2) { try $0.write(name, text: "") }
      }
    }
    #expect(throws: CheckpointError.self) {
      try store.save(step: 2) { writer in
        try writer.write("a", text: "1")
        try writer.write("a", text: "2")
      }
    }
    var escaped: CheckpointWriter?
    try store.save(step: 4) { escaped = $0 }
    #expect(throws: CheckpointError.self) { try escaped?.write("late", text: "") }
    #expect(try folder.contents == ["step-00000001", "step-00000004"])
    #expect(try store.open().files.isEmpty)
  }

  @Test func livingSavesAreNotCleanedUp() throws {
    let folder = try TemporaryFolder()
    let store = DirectoryStore(path: folder.path)
    try store.save(step: 1) { writer in
      try writer.write("a", text: "outer")
      #expect(try store.removeLeftovers() == [])
      try self.save(store, 2)
      #expect(try store.steps() == [2])
    }
    #expect(try store.steps() == [1, 2])
    #expect(try store.open(step: 1).bytes(of: "a") == Array("outer".utf8))
  }

  @Test func keepRemovesTheOldestButNeverForDamagedOnes() throws {
    let folder = try TemporaryFolder()
    let store = DirectoryStore(path: folder.path)
    for step in 1...6 { try save(store, step) }
    System.remove(folder("step-00000006/manifest.json"))
    try scribble([0], to: folder("step-00000004/state.json"))
    #expect(try store.keep(last: 2) == [1, 2])
    #expect(try store.steps() == [3, 4, 5, 6])
    #expect(try store.keep(last: 10) == [])
    #expect(try store.keep(last: 1) == [3, 4])
    #expect(try store.open().step == 5)
    #expect(try folder.contents == ["step-00000005", "step-00000006"])
    #expect(throws: CheckpointError.self) { try store.keep(last: 0) }
  }

  @Test func foreignNamesAreLeftAlone() throws {
    let folder = try TemporaryFolder()
    let store = DirectoryStore(path: folder.path)
    try save(store, 1)
    for name in ["step-1", "step-0000002x", "step-00000002.bak", "notes", "step--0000001"] {
      try System.createFolder(folder(name))
    }
    try AtomicFile.write("file", to: folder("step-00000009"))
    try save(store, 2)
    try store.keep(last: 1)
    #expect(try store.steps() == [2])
    #expect(try folder.contents.count == 7)
  }

  @Test func manifestsOfNewerVersionsAndOtherStepsAreRefused() throws {
    let folder = try TemporaryFolder()
    let store = DirectoryStore(path: folder.path)
    try save(store, 1)
    let path = folder("step-00000001/manifest.json")
    for (text, isUnsupported) in [
      (#"{"format":"gyre-checkpoint","version":2,"step":1,"files":{}}"#, true),
      (#"{"format":"gyre-checkpoint","version":1,"step":2,"files":{}}"#, false),
      (#"{"format":"other","version":1,"step":1,"files":{}}"#, false),
      (
        #"{"format":"gyre-checkpoint","version":1,"step":1,"files":{"../x":{"byteCount":0,"sha256":""}}}"#,
        false
      ),
      (
        #"{"format":"gyre-checkpoint","version":1,"step":1,"files":{"x":{"byteCount":-1,"sha256":""}}}"#,
        false
      ),
    ] {
      try AtomicFile.write(text, to: path)
      let error = #expect(throws: CheckpointError.self) { try store.open(step: 1) }
      if case .unsupported = error { #expect(isUnsupported) } else { #expect(!isUnsupported) }
    }
  }
}
