import ArgumentParser
import GyreCheckpoints
import GyreInference
import GyreModels
import GyreTokenizers

struct Convert: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Write a model in another layout or element type.",
    discussion: """
      Reads a run folder or a folder in a public layout and writes a new folder.

        gyre convert ~/models/mamba-130m-hf out           our layout
        gyre convert out back --layout hf                 the public layout again, bit for bit
        gyre convert runs/tiny-1 out --layout hf          for the original library to load
        gyre convert ~/models/llama out --layout hf --dtype bf16
        gyre convert fla-mom out --compat fla_mom         computes as that library does from now on
        gyre convert model.Q4_K.gguf out                  a GGUF file, unpacked
        gyre convert ~/models/llama model.gguf --type q4_K
        gyre convert model.gguf small.gguf --type q8_0

      Without --dtype every element keeps its bits. GGUF files hold the layouts of llama, mamba, mamba2,
      rwkv6, rwkv7 and qwen3_next with their tokenizer; --type is that of matrices.
      """)

  @Argument(help: "A run folder, a folder in a public layout, or a GGUF file.") var input: String
  @Argument(help: "The folder to write; a GGUF file where the name ends in .gguf.")
  var output: String
  @Option(help: "gyre (ours) or hf (the public layout of the architecture).")
  var layout = TargetLayout.gyre
  @Option(
    help:
      "Matrices of a GGUF file: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_K, q5_K or q6_K.")
  var type: GGUFType?
  @Option(help: "Element type of weights: f32, bf16 or f16 (default: as they are).")
  var dtype: WeightType?
  @OptionGroup var compatibility: CompatibilityOptions
  @Flag(help: "Replace a model in the output folder.") var force = false

  private var isGGUF: Bool { output.hasSuffix(".gguf") }

  func validate() throws {
    if type != nil, !isGGUF { throw ValidationError("--type is for an output that ends in .gguf") }
    if !compatibility.faults.isEmpty, isGGUF || layout == .hf {
      throw ValidationError("--compat is for our layout; public ones cannot hold it")
    }
    if dtype != nil, isGGUF { throw ValidationError("--dtype is for folders; use --type") }
  }

  func run() throws {
    if isGGUF { return try writeFile() }
    if !force, Files.kind(output + "/" + ModelFolder.configurationFile) != nil {
      throw Failure("'\(output)' holds a model already; --force replaces it")
    }
    let folder = try ModelFolder(path: input, compatibility: compatibility.faults)
    let written = try folder.convert(to: output, layout: layout, type: dtype)
    if folder.isGGUF {
      do {
        _ = try TokenizerFile.save(StoredModel.tokenizer(folder: input), folder: output)
      } catch InferenceError.tokenizer(.notFound) { Terminal.note("\(input) holds no tokenizer") }
    }
    Terminal.note("\(output): \(written)")
  }
}

extension Convert {
  private func writeFile() throws {
    if !force, Files.kind(output) != nil {
      throw Failure("'\(output)' is there already; --force replaces it")
    }
    let folder = try ModelFolder(path: input)
    let tokenizer = try GGUFTokenizer.metadata(path: input)
    let written = try folder.writeGGUF(to: output, type: type?.block, tokenizer: tokenizer)
    Terminal.note("\(output): \(written)")
  }
}

/// Types of a GGUF file's matrices, as `--type` names them; letters of either case.
struct GGUFType: ExpressibleByArgument {
  let block: BlockType

  init?(argument: String) {
    guard let found = BlockType(name: argument.uppercased()), found.canPack else { return nil }
    block = found
  }
}

extension TargetLayout: ExpressibleByArgument {}
extension WeightType: ExpressibleByArgument {}
