import FoundationEssentials
import GyreCheckpoints
import GyrePlatform
import GyreRecurrence

/// The measured table of cell executions, `cells.json` in the cache folder.
enum CellTimesFile {
  static var path: String? { Devices.cacheFolder.map { $0 + "/cells.json" } }

  /// The table of this machine; nil where there is none. A damaged file counts as none.
  static func read() -> CellTimes? {
    guard let path, Files.kind(path) == .file, let bytes = try? Files.read(path) else { return nil }
    return try? JSONDecoder().decode(CellTimes.self, from: Data(bytes))
  }

  /// Puts rows of a device in place of those that the file has of it; the file's path.
  static func replace(_ device: String, by rows: [CellTimes.Row]) throws -> String {
    guard let path, let folder = Devices.cacheFolder else {
      throw Failure("there is no cache folder: set GYRE_CACHE, XDG_CACHE_HOME or HOME")
    }
    try Files.makeFolder(folder)
    let times = (read() ?? CellTimes([])).replacing(device, by: rows)
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .prettyPrinted]
    try AtomicFile.write(
      String(decoding: try encoder.encode(times), as: UTF8.self) + "\n", to: path)
    return path
  }
}
