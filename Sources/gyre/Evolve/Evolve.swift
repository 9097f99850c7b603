import ArgumentParser
import GyreEvolution
import GyrePlatform
import GyreTensors

struct Evolve: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Train without gradients, by evolution strategies.",
    discussion: """
      A population of perturbed models is scored, and the model moves towards the better ones.

        gyre evolve --model egg                      EGG, a language model of whole numbers
        gyre evolve --model egg book.txt --population 16384 --generations 2000 --out runs/egg
        gyre evolve --model egg --device cuda:0 --width 256 --population 262144 --streams 16
        gyre evolve --model tiny book.txt --reward loss          EGGROLL: any model, low rank
        gyre evolve --model runs/tiny-1 --reward accuracy --population 512 --sigma 0.01
        gyre evolve --model runs/tiny-1 --reward "python3 score.py" --prompts prompts.txt
        gyre evolve --model tiny --compare backprop  the curve of gradients beside it
        gyre evolve --environment cartpole           a recurrent policy: cartpole, pendulum,
                                                     mountaincar, acrobot, tmaze
        gyre evolve --resume --out runs/egg --generations 4000
        gyre evolve --model egg --workers 4          processes of one machine, with --device cuda
                                                     a card each; or under MPI:
        mpirun -n 4 gyre evolve --model egg          the bits of one process, many times faster
        gyre evolve --evidence rank                  how fast rank r approaches full rank, from
                                                     --population members (8 million)

      Texts are files, folders or JSON lines with a field "text"; none: the built-in text. The run
      folder holds the model, evolution.json, metrics.jsonl and report.html; generate, eval and inspect
      take it. Ctrl-C and SIGTERM save a checkpoint and end; --resume goes on bit for bit.

      A program as --reward reads one JSON object a line, {"id", "generation", "member", "prompt",
      "completion"}, and answers each with {"id", "score"}. It may crash or hang: it is started anew, and
      at worst the generation is passed over.
      """)

  enum Evidence: String, ExpressibleByArgument { case rank }

  @Argument(help: "Text files, folders, .jsonl files; none: the built-in text.")
  var texts: [String] = []
  @Option(help: "egg, a preset, a config.json, or the folder of a trained model to go on with.")
  var model: String?
  @Option(help: "Evolve a policy for this environment.") var environment: String?
  @Option(help: "Measure: rank.") var evidence: Evidence?
  @OptionGroup var shared: EvolveOptions
  @OptionGroup(title: "EGG") var egg: EggOptions
  @OptionGroup(title: "EGGROLL, for float models") var float: FloatOptions
  @OptionGroup var device: DeviceOptions

  func validate() throws {
    if evidence != nil { return }
    if !(1...4096).contains(shared.workers) {
      throw ValidationError("--workers must be in 1...4096")
    }
    if shared.resume, shared.out == nil {
      throw ValidationError("--resume needs --out, the run folder to go on with")
    }
    if shared.resume, !texts.isEmpty || model != nil || environment != nil {
      throw ValidationError("--resume takes texts, model and environment from the run folder")
    }
    if !shared.resume, (model == nil) == (environment == nil) {
      throw ValidationError("name either --model, such as egg, or --environment")
    }
    if let environment, Environments.type(named: environment) == nil {
      let names = Environments.all.map { $0.name }.joined(separator: ", ")
      throw ValidationError("--environment '\(environment)' does not exist; there are \(names)")
    }
  }

  func run() throws {
    if evidence != nil {
      try measureRank(try device.open())
      return
    }
    if try EvolutionWorkers.launch(shared) { return }
    let (device, group) = try EvolutionWorkers.join(device, workers: shared.workers)
    do { try evolve(device, group) } catch let error where group?.isLeader == false {
      Terminal.note("worker \(group?.rank ?? 0): \(error)")
      throw ExitCode.failure
    }
  }

  private func evolve(_ device: any Device, _ group: (any WorkerGroup)?) throws {
    var isEgg = model == EggModel.type
    if shared.resume, let out = shared.out { isEgg = try EggModel.shape(folder: out) != nil }
    if isEgg {
      if shared.update == .shared {
        throw Failure("--update shared is for float models: EGG's vote is one short product")
      }
      try EvolveEgg(texts: texts, options: shared, egg: egg, device: device, group: group).run()
    } else {
      try EvolveFloat(
        texts: texts, model: model, environment: environment, options: shared, float: float,
        device: device, group: group
      ).run()
    }
  }

  private func measureRank(_ device: any Device) throws {
    let result = try RankEvidence.measure(
      pairs: max((shared.population ?? 1 << 23) / 2, 1 << 10), seed: shared.seed ?? 1,
      device: device)
    if shared.json {
      try JSONOutput.document(result)
      return
    }
    var table = Table([("rank", .right), ("distance", .right), ("standard error", .right)])
    for row in result.rows {
      table.add([
        "\(row.rank)", Format.fixed(row.distance, 5), Format.fixed(row.standardError, 5),
      ])
    }
    table.print()
    Terminal.line(
      "distance of rank r's direction from that of full rank, over its length; log-log slope "
        + Format.fixed(result.slope, 3))
  }
}

/// Options of every evolution.
struct EvolveOptions: ParsableArguments {
  @Option(help: "Members scored in a generation.") var population: Int?
  @Option(help: "Generations to run.") var generations: Int?
  @Option(help: "Tokens that a member reads or writes in a row of a generation.") var tokens: Int?
  @Option(help: "Seed of the model, the noise and the order of data.") var seed: UInt64?
  @Option(help: "The run folder; by default the next free runs/NAME-N.") var out: String?
  @Option(help: "Generations between checkpoints.") var checkpointEvery: Int?
  @Option(help: "Generations between evaluations.") var evalEvery: Int?
  @Option(help: "Generations that share one noise; 0: the same noise always.")
  var noiseReuse: Int?
  @Flag(help: "Go on from the last checkpoint of --out.") var resume = false
  @Option(help: "Processes of this machine that score the population together.") var workers = 1
  @Option(help: "When one of them ends: stop (with a checkpoint) or drop (the others go on).")
  var onFailure = WorkerFailure.stop
  @Option(
    help: ArgumentHelp(
      "Who computes the update of a float model: whole, shared or auto.",
      discussion: "whole: every process all of it; shared: each some parameters, which they "
        + "exchange; auto: the faster of the two. The bits are the same."))
  var update = UpdateWork.auto
  @Flag(help: "One JSON object a generation on standard output.") var json = false
}

/// Options of EGG alone.
struct EggOptions: ParsableArguments {
  @Option(help: "Width of the model.") var width: Int?
  @Option(help: "Layers of the model.") var layers: Int?
  @Option(help: "Standard deviation of a matrix's first weights; 16 is one.")
  var deviation: Double?
  @Option(help: "Streams that the text is cut into; members of a group share one.")
  var streams: Int?
  @Option(help: "Perturbations are 16 · 2^-this of a unit weight.") var sigmaShift: Int?
  @Option(help: "The part of weights that noise alone would move, at first.") var alpha: Double?
  @Option(help: "The same at the end.") var finalAlpha: Double?
  @Option(help: "exponential, or published: 1/(0.015 t + 1).")
  var alphaSchedule: EggConfiguration.Schedule?
  @Option(
    help: "carried: votes too weak to move a weight are kept for the next; fresh: as published.")
  var votes: EggConfiguration.Votes?
}

/// Options of float models.
struct FloatOptions: ParsableArguments {
  enum Strategy: String, ExpressibleByArgument, CaseIterable {
    case eggroll, mezo
    case openai = "openai-es"
  }
  @Option(help: "eggroll (low rank), openai-es (full rank) or mezo (one pair, full rank).")
  var strategy: Strategy?
  @Option(help: "loss, accuracy, or a program that scores completions.") var reward: String?
  @Option(help: "A file with one prompt a line, for a program as reward.") var prompts: String?
  @Option(help: "Temperature of completions; 0: the likeliest token always.")
  var temperature = 0.0
  @Option(help: "Seconds that a program may be silent.") var timeout = 60.0
  @Option(help: "How often a program is started anew before a generation is passed over.")
  var retries = 2
  @Option(help: "r of the perturbations; 0: full rank.") var rank: Int?
  @Option(help: "σ of the perturbations.") var sigma: Double?
  @Option(help: "Factor on σ every generation.") var sigmaDecay: Double?
  @Option(help: "Learning rate: pure noise moves an entry by about this many σ.") var lr: Double?
  @Option(help: "Factor on the learning rate every generation.") var lrDecay: Double?
  @Option(help: "sgd, momentum or adamw.") var optimizer: EvolutionConfiguration.OptimizerKind?
  @Option(help: "Weight decay of matrices.") var weightDecay: Double?
  @Option(
    help: ArgumentHelp(
      "How scores become weights.",
      discussion: FitnessShaping.allCases.map(\.rawValue).joined(separator: ", ")))
  var shaping: FitnessShaping?
  @Option(help: "Members that share data; 0: all.") var group: Int?
  @Option(help: "Rows of text, prompts or episodes a member.") var rows: Int?
  @Option(help: "Rows that go through the model at once.") var chunkRows: Int?
  @Flag(help: "Perturb matrices only.") var freezeVectors = false
  enum Comparison: String, ExpressibleByArgument { case backprop }
  @Option(help: "backprop: train the same model with gradients on the same texts, for the report.")
  var compare: Comparison?
  @Option(help: "Learning rate of that training.") var compareLr = 3e-3
  @Option(help: "Layer of a policy: a mixer such as min_gru or rg_lru, or feed_forward.")
  var policy: String?
  @Option(help: "Width of a policy.") var policyWidth: Int?
}

extension EggConfiguration.Schedule: ExpressibleByArgument {}
extension WorkerFailure: ExpressibleByArgument {}
extension UpdateWork: ExpressibleByArgument {}
extension EggConfiguration.Votes: ExpressibleByArgument {}
extension EvolutionConfiguration.OptimizerKind: ExpressibleByArgument {}
extension FitnessShaping: ExpressibleByArgument {}
