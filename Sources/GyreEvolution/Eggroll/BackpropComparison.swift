import GyreModels
import GyreTensors
import GyreTraining

/// What gradients reach where evolution went: the same model from the same start, one step of AdamW a
/// generation on the rows that the population reads in it, scored at the same generations on the same text.
public struct BackpropComparison {
  private let task: LanguageTask
  private let model: LanguageModel
  private let configuration: EvolutionConfiguration

  /// - Parameters:
  ///   - model: a copy of the model at the start of the evolution; it is trained.
  ///   - task: the task of that copy.
  public init(model: LanguageModel, task: LanguageTask, configuration: EvolutionConfiguration) {
    self.model = model
    self.task = task
    self.configuration = configuration
  }

  /// Trains through `generations`.
  ///
  /// - Parameters:
  ///   - learningRate: the highest; it rises over a twentieth of the run and falls to a tenth.
  ///   - report: told of every generation; false ends the run.
  public func run(
    generations: Int, learningRate: Double, report: (EvolutionMetrics) throws -> Bool
  ) throws {
    var training = TrainingConfiguration()
    training.learningRate = learningRate
    let optimizer = Optimizer(model.parameters, training)
    let schedule = Schedule(
      .cosine, steps: generations, warmupSteps: max(1, generations / 20), finalFraction: 0.1)
    let variables = model.parameters.map(\.value)
    let clock = ContinuousClock()
    let start = clock.now
    for generation in 0..<generations {
      let texts = (0..<task.groups).flatMap { task.texts(group: $0, generation: generation) }
      let shape: Shape = [texts.count, configuration.length]
      let tokens = Tensor(texts.flatMap { $0.dropLast() }, shape: shape, on: model.device)
      let targets = Tensor(texts.flatMap { $0.dropFirst() }, shape: shape, on: model.device)
      let tape = Tape()
      tape.watch(variables)
      let loss = tape.record {
        var state = model.makeState(batch: texts.count)
        return model.loss(tokens, targets: targets, state: &state).mean
      }
      let gradients = tape.gradients(of: loss, for: variables)
      let norm = try apply(SumOfSquares(), gradients.compactMap(\.self))[0].item().squareRoot()
      let factor = Tensor([Float(norm > 1 ? 1 / norm : 1)], shape: [1], on: model.device)
      optimizer.step(gradients, factor: factor, schedule: schedule.factor(generation))
      let bits = try loss.item() / 0.693_147_180_559_945_3
      let (done, every) = (generation + 1, configuration.evaluateEvery)
      let isScored = done == generations || (every > 0 && done % every == 0)
      let metrics = EvolutionMetrics(
        generation: done, tokens: done * shape.elementCount,
        meanFitness: -bits / task.bytesPerToken, bestFitness: -bits / task.bytesPerToken,
        validationBitsPerByte: isScored ? try task.evaluate() : nil,
        seconds: seconds(clock.now - start), forward: 0, noise: 0, update: 0, scoring: 0)
      guard try report(metrics) else { return }
    }
  }
}
