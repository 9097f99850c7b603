// Folders, fixtures and seeded damage for the tests of this target.

import Testing

@testable import GyreCheckpoints

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// A folder that disappears with the test.
final class TemporaryFolder {
  let path: String

  init() throws {
    var template = Array("/tmp/gyre-checkpoints-XXXXXX\0".utf8CString)
    guard mkdtemp(&template) != nil else {
      throw CheckpointError.io(operation: "create folder", path: "/tmp", errno: errno)
    }
    path = String(decoding: template.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
  }

  deinit { try? System.removeTree(path) }

  func callAsFunction(_ name: String) -> String { Path.join(path, name) }

  /// Everything in the folder, hidden names too.
  var contents: [String] { get throws { try System.list(path) } }
}

func fixture(
  _ name: String, in folder: String = "safetensors", file: String = #filePath
) -> String {
  let tests = Path.folder(of: Path.folder(of: file))
  return Path.join(tests, "Fixtures/\(folder)/\(name)")
}

func contents(of path: String) throws -> [UInt8] {
  try MappedFile(path: path).withUnsafeBytes { Array($0) }
}

/// Writes without any care, as a careless or killed program would.
func scribble(_ bytes: [UInt8], to path: String) throws {
  System.remove(path)
  let file = try Descriptor.create(path, shownAs: path)
  var failure: CheckpointError?
  bytes.withUnsafeBytes { buffer in
    do throws(CheckpointError) { try file.write(buffer) } catch { failure = error }
  }
  if let failure { throw failure }
}

/// A safetensors file with this header text and data.
func file(_ header: String, data: [UInt8] = []) -> [UInt8] {
  let text = Array(header.utf8)
  return withUnsafeBytes(of: UInt64(text.count).littleEndian, Array.init) + text + data
}

/// SplitMix64.
struct SeededGenerator: RandomNumberGenerator {
  var state: UInt64
  init(seed: UInt64) { state = seed }
  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }
}

/// The reason of a `corrupt` error; records an issue for everything else.
func corruption(
  _ bytes: [UInt8], sourceLocation: SourceLocation = #_sourceLocation
) -> String {
  do throws(CheckpointError) {
    _ = try SafetensorsFile(bytes: bytes)
    Issue.record("damage was not noticed", sourceLocation: sourceLocation)
  } catch .corrupt(_, let offset, let reason) {
    #expect(offset >= 0 && offset <= bytes.count, sourceLocation: sourceLocation)
    return reason
  } catch {
    Issue.record("\(error)", sourceLocation: sourceLocation)
  }
  return ""
}
