import GyreTensors

/// A corridor at whose start a sign says which way to turn at its end: memory alone solves it (Bakker,
/// "Reinforcement learning with long short-term memory", 2001).
///
/// Observations: at the start (0, 1, 1) or (1, 1, 0), in the corridor (1, 0, 1), at the junction (0, 1, 0). Actions
/// north, east, south, west. The right turn pays 4 and ends, the wrong one −0.1 and ends; standing still pays
/// −0.1; the episode ends after length + 20 steps.
public struct TMaze: Environment {
  public static let name = "tmaze"
  public static let observationSize = 3
  public static let actionCount = 4
  public static let length = 50
  public static let maximumSteps = length + 20
  public static let solvedReturn = 3.9
  private var place = 0
  private let goesNorth: Bool

  public static let memory = length

  public init(_ g: CounterGenerator) { goesNorth = g.word(0) >> 31 == 1 }
  /// Signs in turn: a policy that always turns the same way then gets the same from every pair of episodes,
  /// so that scores differ by memory alone.
  public init(_: CounterGenerator, number: Int) { goesNorth = number % 2 == 0 }
  public var observation: [Float] {
    if place == 0 { return goesNorth ? [0, 1, 1] : [1, 1, 0] }
    return place == Self.length ? [0, 1, 0] : [1, 0, 1]
  }

  public mutating func step(_ action: Double) -> (reward: Double, ends: Bool) {
    let isNorth = action == 0
    switch (Int(action), place) {
    case (0, Self.length), (2, Self.length):
      return (isNorth == goesNorth ? 4 : -0.1, true)
    case (1, 0..<Self.length):
      place += 1
      return (0, false)
    case (3, 1...):
      place -= 1
      return (0, false)
    default: return (-0.1, false)
    }
  }
}
