import GyreTensors
import Testing

@testable import GyreEvolution

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// Trajectories recorded with Gymnasium 1.2 by Scripts/goldens/environments.py.
@Suite("Environments")
struct EnvironmentTests {
  private struct Step: Decodable {
    var action: Double
    var observation: [Double]
    var reward: Double
    var ends: Bool
  }
  private struct Episode: Decodable {
    var start: [Double]
    var steps: [Step]
  }

  private static func episodes(_ name: String) throws -> [Episode] {
    let path = URL(fileURLWithPath: #filePath)
      .deletingLastPathComponent().deletingLastPathComponent()
      .appendingPathComponent("Fixtures/environments/gymnasium.json")
    let all = try JSONDecoder().decode([String: [Episode]].self, from: Data(contentsOf: path))
    return try #require(all[name])
  }

  private func follow<E: Environment>(
    _: E.Type, start: (inout E, [Double]) -> Void
  ) throws {
    for episode in try Self.episodes(E.name) {
      var world = E(CounterGenerator(seed: 0))
      start(&world, episode.start)
      for (i, expected) in episode.steps.enumerated() {
        let (reward, ends) = world.step(expected.action)
        #expect(abs(reward - expected.reward) <= 1e-5 * max(abs(expected.reward), 1), "step \(i)")
        #expect(ends == expected.ends, "step \(i)")
        for (a, b) in zip(world.observation, expected.observation) {
          #expect(abs(Double(a) - b) <= 1e-4 * max(abs(b), 1), "step \(i): \(a) for \(b)")
        }
      }
    }
  }

  @Test("CartPole moves, pays and ends as Gymnasium's") func cartPole() throws {
    try follow(CartPole.self) { $0.state = ($1[0], $1[1], $1[2], $1[3]) }
  }
  @Test("Pendulum moves and pays as Gymnasium's") func pendulum() throws {
    try follow(Pendulum.self) { $0.state = ($1[0], $1[1]) }
  }
  @Test("MountainCar moves, pays and ends as Gymnasium's") func mountainCar() throws {
    try follow(MountainCar.self) { $0.state = ($1[0], $1[1]) }
  }
  @Test("Acrobot moves, pays and ends as Gymnasium's") func acrobot() throws {
    try follow(Acrobot.self) { $0.state = [$1[0], $1[1], $1[2], $1[3]] }
  }

  @Test("the T-maze pays the turn that the sign says")
  func maze() {
    for seed in UInt64(0)..<8 {
      var maze = TMaze(CounterGenerator(seed: seed, name: "maze"))
      let goesNorth = maze.observation == [0, 1, 1]
      for _ in 0..<TMaze.length {
        #expect(maze.step(1) == (0, false))
      }
      #expect(maze.observation == [0, 1, 0])
      var wrong = maze
      #expect(maze.step(goesNorth ? 0 : 2) == (4, true))
      #expect(wrong.step(goesNorth ? 2 : 0) == (-0.1, true))
    }
  }
}
