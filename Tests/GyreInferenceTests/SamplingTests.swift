import GyreInference
import Testing

@Suite struct SamplingTests {
  private func options(_ change: (inout SamplingOptions) -> Void) -> SamplingOptions {
    var options = SamplingOptions()
    change(&options)
    return options
  }

  private func probabilities(_ logits: [Float], _ change: (inout SamplingOptions) -> Void) throws
    -> [Int32: Double]
  {
    let candidates = try Sampler(options(change)).distribution(logits)
    return Dictionary(uniqueKeysWithValues: candidates.map { ($0.token, $0.probability) })
  }

  /// ln of 0.5, 0.25, 0.15, 0.1.
  private let logits: [Float] = [-0.6931472, -1.3862944, -1.8971200, -2.3025851]

  @Test func plainSamplingIsSoftmax() throws {
    let p = try probabilities(logits) { _ in }
    for (token, expected) in [0.5, 0.25, 0.15, 0.1].enumerated() {
      #expect(abs((p[Int32(token)] ?? 0) - expected) < 1e-6)
    }
  }

  @Test func temperatureZeroTakesTheFirstLargest() throws {
    var sampler = Sampler(options { $0.temperature = 0 })
    #expect(try sampler.next([1, 3, 3, 2]) == 1)
  }

  @Test func temperatureSharpens() throws {
    let p = try probabilities(logits) { $0.temperature = 0.5 }
    // Squares over their sum: 0.25 / (0.25 + 0.0625 + 0.0225 + 0.01).
    #expect(abs((p[0] ?? 0) - 0.25 / 0.345) < 1e-6)
  }

  @Test func topKKeepsTheLikeliest() throws {
    let p = try probabilities(logits) { $0.topK = 2 }
    #expect(Set(p.keys) == [0, 1])
    #expect(abs((p[0] ?? 0) - 2.0 / 3) < 1e-6)
  }

  @Test func topPKeepsTheFewestThatReachIt() throws {
    #expect(try Set(probabilities(logits) { $0.topP = 0.49 }.keys) == [0])
    #expect(try Set(probabilities(logits) { $0.topP = 0.7 }.keys) == [0, 1])
    #expect(try Set(probabilities(logits) { $0.topP = 0.8 }.keys) == [0, 1, 2])
  }

  @Test func minPComparesWithTheLikeliest() throws {
    #expect(try Set(probabilities(logits) { $0.minP = 0.29 }.keys) == [0, 1, 2])
    #expect(try Set(probabilities(logits) { $0.minP = 1 }.keys) == [0])
  }

  @Test func repetitionPenaltyForgetsWhatLeftTheWindow() throws {
    var sampler = Sampler(
      options {
        $0.repetitionPenalty = 2
        $0.repetitionWindow = 2
        $0.temperature = 0
      })
    sampler.observe(0)
    #expect(try sampler.distribution([1, 0.9, 0.8])[0].token == 1)
    sampler.observe(2)
    sampler.observe(2)
    #expect(try sampler.distribution([1, 0.9, 0.8])[0].token == 0)
  }

  @Test func drawsFollowTheDistribution() throws {
    var sampler = Sampler(options { $0.seed = 7 })
    var counts = [0, 0, 0, 0]
    let draws = 20_000
    for _ in 0..<draws { counts[Int(try sampler.next(logits))] += 1 }
    for (count, expected) in zip(counts, [0.5, 0.25, 0.15, 0.1]) {
      // Five standard deviations.
      let deviation = (expected * (1 - expected) / Double(draws)).squareRoot()
      #expect(abs(Double(count) / Double(draws) - expected) < 5 * deviation)
    }
  }

  @Test func equalSeedsDrawEqually() throws {
    var (a, b) = (Sampler(options { $0.seed = 3 }), Sampler(options { $0.seed = 3 }))
    var c = Sampler(options { $0.seed = 4 })
    let first = try (0..<50).map { _ in try a.next(logits) }
    #expect(try (0..<50).map { _ in try b.next(logits) } == first)
    #expect(try (0..<50).map { _ in try c.next(logits) } != first)
  }

  @Test func brokenLogits() throws {
    var sampler = Sampler(SamplingOptions())
    #expect(try sampler.next([.nan, -.infinity, 2]) == 2)
    #expect(try sampler.next([0, .infinity, 2]) == 1)
    #expect(throws: InferenceError.self) { try sampler.next([.nan, -.infinity]) }
    #expect(throws: InferenceError.self) { try sampler.next([]) }
  }

  @Test func impossibleOptions() {
    #expect(throws: InferenceError.self) { try options { $0.topP = 0 }.validate() }
    #expect(throws: InferenceError.self) { try options { $0.temperature = -1 }.validate() }
    #expect(throws: InferenceError.self) { try options { $0.minP = 2 }.validate() }
    #expect(throws: InferenceError.self) { try options { $0.repetitionPenalty = 0 }.validate() }
  }
}
