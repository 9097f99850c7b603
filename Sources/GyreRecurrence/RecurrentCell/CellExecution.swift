import GyreTensors
import Synchronization

/// How a cell is run over time.
public enum CellExecution: String, Sendable, Hashable, Codable, CaseIterable {
  /// By shape, from measured times (`CellTimes`).
  case automatic
  /// Token by token.
  case sequential
  /// All tokens of a block at once, until the distance to the token-by-token states is within
  /// rounding; a block that does not get there is run token by token. Cells whose units do not mix:
  /// Newton's method, each step a linear scan. Others: sweeps in which only the recurrent products
  /// lag, each made by one large product (Gonzalez et al., "Towards scalable and stable
  /// parallelization of nonlinear RNNs", 2024, https://arxiv.org/abs/2407.19115, with the gates as
  /// the approximate Jacobian).
  case newton

  /// What decides which execution is faster, beside sizes.
  public enum Structure: String, Sendable, Hashable, Codable, CaseIterable {
    /// Units do not mix; one, two or three states a unit.
    case scan1, scan2, scan3
    /// Recurrent products, run as code.
    case dense
    /// Recurrent products with kernels of their own (`CellScan`).
    case fused
  }

  /// Whether to solve all tokens at once.
  public func isNewton(
    _ structure: Structure, rows: Int, channels: Int, tokens: Int, on device: any Device
  ) -> Bool {
    switch self {
    case .sequential: false
    case .newton: true
    case .automatic:
      CellTimes.current?.isNewtonFaster(
        structure, rows: rows, channels: channels, tokens: tokens, device: device.id.name)
        ?? CellExecution.isNewtonFaster(
          structure, rows: rows, channels: channels, tokens: tokens, on: device)
    }
  }

  /// The choice without a table of this machine: with few channels in all, token by token leaves most
  /// of a device idle; with three states Newton's method has twice the work. Products of a token at a
  /// time were faster at almost every size that was measured.
  public static func isNewtonFaster(
    _ structure: Structure, rows: Int, channels: Int, tokens: Int, on device: any Device
  ) -> Bool {
    let work: Int
    switch structure {
    case .scan1, .scan2: work = 1
    case .scan3: work = 2
    case .dense, .fused: return false
    }
    let range = device.newtonRange
    return tokens >= range.tokens && rows * channels * work <= range.units
  }
}

/// Measured times of both executions over shapes: what the automatic choice reads. `gyre bench
/// --cells` writes the file that the commands read; a program sets `current`.
public struct CellTimes: Codable, Sendable, Hashable {
  public struct Row: Codable, Sendable, Hashable {
    public var device: String
    public var structure: CellExecution.Structure
    public var rows, channels, tokens: Int
    /// Forward and backward together.
    public var sequentialSeconds, newtonSeconds: Double

    public init(
      device: String, structure: CellExecution.Structure, rows: Int, channels: Int, tokens: Int,
      sequentialSeconds: Double, newtonSeconds: Double
    ) {
      (self.device, self.structure) = (device, structure)
      (self.rows, self.channels, self.tokens) = (rows, channels, tokens)
      (self.sequentialSeconds, self.newtonSeconds) = (sequentialSeconds, newtonSeconds)
    }

    /// Distance to a shape in doublings. Where units do not mix only the number of all of them counts.
    fileprivate func distance(rows: Int, channels: Int, tokens: Int) -> Double {
      func doublings(_ a: Int, _ b: Int) -> Double {
        abs(Functions.log(Double(max(a, 1)) / Double(max(b, 1)))) / 0.693_147_180_559_945_3
      }
      let time = doublings(self.tokens, tokens)
      switch structure {
      case .scan1, .scan2, .scan3:
        return doublings(self.rows * self.channels, rows * channels) + time
      case .dense, .fused:
        return doublings(self.rows, rows) + doublings(self.channels, channels) + time
      }
    }
  }
  public var rows: [Row]
  public init(_ rows: [Row]) { self.rows = rows }

  /// The rows of other devices and these.
  public func replacing(_ device: String, by rows: [Row]) -> CellTimes {
    CellTimes(self.rows.filter { $0.device != device } + rows)
  }

  /// By the nearest shape that was measured on the device; nil where there is none.
  public func isNewtonFaster(
    _ structure: CellExecution.Structure, rows: Int, channels: Int, tokens: Int, device: String
  ) -> Bool? {
    let near = self.rows.filter { $0.device == device && $0.structure == structure }.min {
      $0.distance(rows: rows, channels: channels, tokens: tokens)
        < $1.distance(rows: rows, channels: channels, tokens: tokens)
    }
    // Within the noise of measuring, token by token it is.
    return near.map { $0.newtonSeconds < 0.95 * $0.sequentialSeconds }
  }

  private static let shared = Mutex<CellTimes?>(nil)
  /// The table of this process; nil: the built-in choice.
  public static var current: CellTimes? {
    get { shared.withLock { $0 } }
    set { shared.withLock { $0 = newValue } }
  }
}
