import GyreTensors

/// A world that a policy acts in, one episode.
public protocol Environment: Sendable {
  static var name: String { get }
  static var observationSize: Int { get }
  /// Choices; 0: one number in [−1, 1], scaled by the environment.
  static var actionCount: Int { get }
  static var maximumSteps: Int { get }
  /// Mean return from which the task counts as solved.
  static var solvedReturn: Double { get }
  /// A random start: numbers 0, 1, … of the generator.
  init(_ generator: CounterGenerator)
  /// The start of episode `number` of many, which may take what differs between episodes in turn.
  init(_ generator: CounterGenerator, number: Int)
  /// Steps between what is seen and the act that it decides; 0: no more than a few.
  static var memory: Int { get }
  var observation: [Float] { get }
  /// Acts: the reward, and whether the episode ends.
  mutating func step(_ action: Double) -> (reward: Double, ends: Bool)
}

extension Environment {
  public init(_ generator: CounterGenerator, number: Int) { self.init(generator) }
  public static var memory: Int { 0 }
}

/// The environments by name.
public enum Environments {
  public static let all: [any Environment.Type] = [
    CartPole.self, Pendulum.self, MountainCar.self, Acrobot.self, TMaze.self,
  ]
  public static func type(named name: String) -> (any Environment.Type)? {
    all.first { $0.name == name }
  }
}

extension CounterGenerator {
  /// Uniform number `index` in (low, high), 32 bits of it.
  func between(_ low: Double, _ high: Double, _ index: UInt64) -> Double {
    low + (high - low) * (Double(word(index)) + 0.5) * 0x1p-32
  }
}
