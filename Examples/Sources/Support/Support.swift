import Foundation
import GyreCheckpoints
import GyreModels
import GyrePlatform
import GyreTensors

/// What the examples share: a folder with weights, the processor, comparison with stored results.
public struct Network {
  public let folder: URL
  public let weights: SafetensorsFile
  public let device: any Device

  /// Opens `FOLDER/model.safetensors`.
  public init(folder path: String) throws {
    folder = URL(fileURLWithPath: path)
    weights = try SafetensorsFile(path: folder.appendingPathComponent("model.safetensors").path)
    device = try Devices.open("cpu")
  }

  public func tensor(_ name: String) throws -> Tensor { try weights.tensor(name, on: device) }

  /// Results that the original program gave, `FOLDER/ref.safetensors`.
  public func reference() throws -> SafetensorsFile {
    try SafetensorsFile(path: folder.appendingPathComponent("ref.safetensors").path)
  }

  public func json<T: Decodable>(_ name: String, as type: T.Type = T.self) throws -> T {
    try JSONDecoder().decode(type, from: Data(contentsOf: folder.appendingPathComponent(name)))
  }

  /// Token numbers as a batch of one row.
  public func row(_ tokens: [Int]) -> Tensor {
    Tensor(tokens.map(Int32.init), shape: [1, tokens.count], on: device)
  }

  /// Compares with a stored result and says how far they are apart.
  public func check(_ what: String, _ y: Tensor, _ expected: [Float], within limit: Float) throws {
    let values = try y.floats()
    guard values.count == expected.count else {
      throw ExampleError(
        "\(what): \(values.count) numbers where the original has \(expected.count)")
    }
    let worst = zip(values, expected).map { abs($0 - $1) }.max() ?? 0
    print("\(what): \(values.count) numbers, at most \(worst) from the original's")
    guard worst <= limit else { throw ExampleError("\(what): more than \(limit) apart") }
  }
}

public struct ExampleError: Error, CustomStringConvertible {
  public let description: String
  public init(_ description: String) { self.description = description }
}

/// Runs a program on its arguments: `FOLDER`, then `--check` or what `use` explains.
public func run(use: String, _ body: (Network, [String]) throws -> Void) {
  let arguments = Array(CommandLine.arguments.dropFirst())
  guard let folder = arguments.first, folder != "--help" else {
    print("use: \(use)")
    exit(2)
  }
  do { try body(Network(folder: folder), Array(arguments.dropFirst())) } catch {
    FileHandle.standardError.write(Data("\(error)\n".utf8))
    exit(1)
  }
}
