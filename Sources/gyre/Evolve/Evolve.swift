import ArgumentParser
import GyreEvolution
import GyreTensors

struct Evolve: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Train without gradients, by evolution strategies.",
    discussion: """
      A population of perturbed models is scored, and the model moves towards the better ones.

        gyre evolve --model egg                      EGG, a language model of whole numbers
        gyre evolve --model egg book.txt --population 16384 --generations 2000 --out runs/egg
        gyre evolve --resume --out runs/egg --generations 4000

      Texts are files, folders or JSON lines with a field "text"; none: the built-in text. The run
      folder holds config.json, evolution.json, model.safetensors, metrics.jsonl and report.html;
      generate, eval and inspect take it. Ctrl-C and SIGTERM save a checkpoint and end; --resume goes
      on bit for bit.
      """)

  @Argument(help: "Text files, folders, .jsonl files; none: the built-in text.")
  var texts: [String] = []
  @Option(help: "egg.") var model: String?
  @OptionGroup var shared: EvolveOptions
  @OptionGroup(title: "EGG") var egg: EggOptions
  @OptionGroup var device: DeviceOptions

  func validate() throws {
    if shared.resume, shared.out == nil {
      throw ValidationError("--resume needs --out, the run folder to go on with")
    }
    if shared.resume, !texts.isEmpty || model != nil {
      throw ValidationError("--resume takes texts and model from the run folder")
    }
    if !shared.resume, model == nil { throw ValidationError("--model is missing, such as egg") }
  }

  func run() throws {
    let device = try device.open()
    if let model, model != EggModel.type {
      throw Failure("--model '\(model)' cannot evolve; there is egg")
    }
    try EvolveEgg(texts: texts, options: shared, egg: egg, device: device).run()
  }
}

/// Options of every evolution.
struct EvolveOptions: ParsableArguments {
  @Option(help: "Members scored in a generation.") var population: Int?
  @Option(help: "Generations to run.") var generations: Int?
  @Option(help: "Tokens that a member reads in a generation.") var tokens: Int?
  @Option(help: "Seed of the model, the noise and the order of data.") var seed: UInt64?
  @Option(help: "The run folder; by default the next free runs/NAME-N.") var out: String?
  @Option(help: "Generations between checkpoints.") var checkpointEvery: Int?
  @Option(help: "Generations between evaluations.") var evalEvery: Int?
  @Option(help: "Generations that share one noise; 0: the same noise always.")
  var noiseReuse: Int?
  @Flag(help: "Go on from the last checkpoint of --out.") var resume = false
  @Flag(help: "One JSON object a generation on standard output.") var json = false
}

/// Options of EGG alone.
struct EggOptions: ParsableArguments {
  @Option(help: "Width of the model.") var width: Int?
  @Option(help: "Layers of the model.") var layers: Int?
  @Option(help: "Streams that the text is cut into; members of a group share one.")
  var streams: Int?
  @Option(help: "Perturbations are 16 · 2^-this of a unit weight.") var sigmaShift: Int?
  @Option(help: "The part of weights that noise alone would move, at first.") var alpha: Double?
  @Option(help: "The same at the end.") var finalAlpha: Double?
  @Option(help: "exponential, or published: 1/(0.015 t + 1).")
  var alphaSchedule: EggConfiguration.Schedule?
}

extension EggConfiguration.Schedule: ExpressibleByArgument {}
