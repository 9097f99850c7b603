import ArgumentParser
import GyreModels

struct Convert: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Write a model in another layout or element type.",
    discussion: """
      Reads a run folder or a folder in a public layout and writes a new folder.

        gyre convert ~/models/mamba-130m-hf out           our layout
        gyre convert out back --layout hf                 the public layout again, bit for bit
        gyre convert runs/tiny-1 out --layout hf          for the original library to load
        gyre convert ~/models/llama out --layout hf --dtype bf16

      Without --dtype every element keeps its bits.
      """)

  @Argument(help: "A run folder or a folder in a public layout.") var input: String
  @Argument(help: "The folder to write.") var output: String
  @Option(help: "gyre (ours) or hf (the public layout of the architecture).")
  var layout = TargetLayout.gyre
  @Option(help: "Element type of weights: f32, bf16 or f16 (default: as they are).")
  var dtype: WeightType?
  @Flag(help: "Replace a model in the output folder.") var force = false

  func run() throws {
    if !force, Files.kind(output + "/" + ModelFolder.configurationFile) != nil {
      throw Failure("'\(output)' holds a model already; --force replaces it")
    }
    let written = try ModelFolder(path: input).convert(to: output, layout: layout, type: dtype)
    Terminal.note("\(output): \(written)")
  }
}

extension TargetLayout: ExpressibleByArgument {}
extension WeightType: ExpressibleByArgument {}
