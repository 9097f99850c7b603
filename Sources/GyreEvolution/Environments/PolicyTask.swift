import GyreTensors

/// A policy scored by the returns of episodes; all members of a generation start alike.
public final class PolicyTask: EvolutionTask {
  private let policy: Policy
  private let environment: any Environment.Type
  private let configuration: EvolutionConfiguration
  private let device: any Device

  public init(
    policy: Policy, environment: any Environment.Type, configuration: EvolutionConfiguration,
    device: any Device
  ) {
    self.policy = policy
    self.environment = environment
    self.configuration = configuration
    self.device = device
  }

  public var parameters: [Parameter] { policy.parameters }
  public var rowsPerMember: Int { configuration.rows }
  public var isBitsPerByte: Bool { false }

  public func scores(
    members: Range<Int>, generation: Int
  ) throws -> (scores: [[Double]], tokens: Int) {
    let (rows, steps) = try play(
      (0..<members.count).flatMap { _ in
        (0..<configuration.rows).map { episode in
          start("episodes", generation * configuration.rows + episode)
        }
      })
    let n = configuration.rows
    return (
      members.indices.map { i in
        let first = (i - members.lowerBound) * n
        return Array(rows[first..<first + n])
      }, steps
    )
  }

  /// The mean return of 100 episodes that training does not see.
  public func evaluate() throws -> Double? {
    let (returns, _) = try play((0..<100).map { start("evaluation", $0) })
    return returns.reduce(0, +) / Double(returns.count)
  }

  /// Where an episode begins.
  private typealias Start = (generator: CounterGenerator, number: Int)

  private func start(_ purpose: String, _ number: Int) -> Start {
    var g = CounterGenerator(seed: configuration.seed, name: purpose)
    g.stream ^= UInt64(number) &* 0x9E37_79B9_7F4A_7C15
    return (g, number)
  }

  /// Plays an episode in each row; returns and the steps of all together.
  private func play(_ starts: [Start]) throws -> (returns: [Double], steps: Int) {
    func run<E: Environment>(_: E.Type) throws -> (returns: [Double], steps: Int) {
      var worlds = starts.map { E($0.generator, number: $0.number) }
      var running = [Bool](repeating: true, count: worlds.count)
      var returns = [Double](repeating: 0, count: worlds.count)
      var steps = 0
      let outputs = max(E.actionCount, 1)
      var state = policy.makeState(rows: worlds.count)
      for _ in 0..<E.maximumSteps {
        let seen = Tensor(
          worlds.flatMap(\.observation), shape: [worlds.count, 1, E.observationSize], on: device)
        let found = try policy(seen, &state).floats()
        var alive = false
        for i in worlds.indices where running[i] {
          let row = found[i * outputs..<(i + 1) * outputs]
          let action =
            E.actionCount == 0
            ? Functions.tanh(Double(row.first ?? 0)) : Double(Self.largest(row))
          let (reward, ends) = worlds[i].step(action)
          returns[i] += reward
          running[i] = !ends
          alive = alive || !ends
          steps += 1
        }
        if !alive { break }
      }
      return (returns, steps)
    }
    return try run(environment)
  }

  private static func largest(_ row: ArraySlice<Float>) -> Int {
    var best = row.startIndex
    for i in row.indices where row[i] > row[best] { best = i }
    return best - row.startIndex
  }
}
