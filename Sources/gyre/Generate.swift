import ArgumentParser
import GyreEvolution
import GyreInference
import GyreTensors
import GyreTokenizers

struct Generate: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Write text with a trained model, as it comes.",
    discussion: """
      The prompt is --prompt, a file, or standard input when that is not a terminal. Without one the
      model begins a text of its own.

        gyre generate runs/tiny-1
        gyre generate runs/tiny-1 --prompt "ROMEO:" --temperature 0.7 --top-p 0.95
        echo "Once upon a time" | gyre generate runs/tiny-1 --max-tokens 1000
        gyre generate runs/tiny-1 --prompt "Q:" --stop "Q:" --json

      Recurrent models need the same memory at any length: --max-tokens 0 writes until it is stopped.
      Equal seeds write equal texts; --temperature 0 always takes the most probable token.
      """)

  @Argument(help: "A run folder: config.json, model.safetensors, the tokenizer.")
  var folder: String
  @Option(help: "The text to go on from.") var prompt: String?
  @Option(help: "A file with the text to go on from.") var promptFile: String?
  @Option(help: "Tokens to write at most; 0: no limit.") var maxTokens = 256
  @Option(help: "Divides the logits: below 1 bolder about the likely, 0 only the likeliest.")
  var temperature = 0.8
  @Option(help: "Keep the fewest likely tokens that together have this probability.")
  var topP = 1.0
  @Option(help: "Keep this many of the likeliest tokens; 0: all.") var topK = 0
  @Option(help: "Keep tokens at least this part as likely as the likeliest.") var minP = 0.0
  @Option(help: "Above 1: makes recent tokens less likely.") var repetitionPenalty = 1.0
  @Option(help: "Tokens that the repetition penalty looks back.") var repetitionWindow = 64
  @Option(parsing: .singleValue, help: "End before this text; may be given several times.")
  var stop: [String] = []
  @Option(help: "Seed of the draws.") var seed: UInt64 = 0
  @Flag(help: "One object on standard output instead of streamed text.") var json = false
  @OptionGroup var weights: WeightOptions
  @OptionGroup var compatibility: CompatibilityOptions
  @OptionGroup var device: DeviceOptions

  func validate() throws {
    if prompt != nil, promptFile != nil {
      throw ValidationError("--prompt and --prompt-file exclude each other")
    }
    do { try options().validate() } catch { throw ValidationError("--\(error)") }
  }

  func run() throws {
    let text = try promptText()
    let device = try device.open()
    let generate = try writer(text, device)
    Interrupts.install()
    var written = ""
    if !json, !text.isEmpty { Terminal.write(text) }
    let summary = try generate { piece in
      if json { written += piece }
      let heard = json || Terminal.write(piece)
      return heard && !Interrupts.isRequested
    }
    let rate = Double(max(summary.generatedTokens - 1, 0)) / max(summary.decoding.seconds, 1e-9)
    if json {
      try JSONOutput.document(
        Result(
          prompt: text, text: written, promptTokens: summary.promptTokens,
          tokens: summary.generatedTokens, ending: summary.ending,
          prefillSeconds: summary.prefill.seconds, tokensPerS: rate))
    } else {
      Terminal.line()
      Terminal.note(
        Terminal.styled(
          "\(summary.generatedTokens) tokens, \(Format.count(rate)) tokens/s, ended by \(summary.ending.rawValue)",
          .dim, onError: true))
    }
  }

  private typealias Writer = (_ emit: (String) -> Bool) throws -> GenerationSummary

  /// What goes on from a text with the folder's model, of whichever kind.
  private func writer(_ text: String, _ device: any Device) throws -> Writer {
    let options = options()
    if let model = try EggModel.load(folder: folder, device: device) {
      let tokenizer = try StoredModel.tokenizer(folder: folder)
      let tokens = tokenizer.promptTokens(text)
      return { emit in
        var reader = EggReader(model)
        return try reader.generate(after: tokens, tokenizer, options, emit: emit)
      }
    }
    let (matrices, precision) = weights.choice(on: device)
    let generator = try Generator(
      model: try StoredModel.load(
        folder: folder, device: device, matrices: matrices,
        compatibility: compatibility.faults),
      tokenizer: try StoredModel.tokenizer(folder: folder))
    let tokens = generator.tokens(prompt: text)
    return { emit in
      try ComputePrecision.$current.withValue(precision) {
        try generator.generate(after: tokens, options, emit: emit)
      }
    }
  }

  func options() -> GenerationOptions {
    var options = GenerationOptions()
    options.maximumTokens = maxTokens == 0 ? nil : maxTokens
    options.stop = stop
    options.sampling.temperature = temperature
    options.sampling.topK = topK
    options.sampling.topP = topP
    options.sampling.minP = minP
    options.sampling.repetitionPenalty = repetitionPenalty
    options.sampling.repetitionWindow = repetitionWindow
    options.sampling.seed = seed
    return options
  }

  private func promptText() throws -> String {
    if let prompt { return prompt }
    if let promptFile { return String(decoding: try Files.read(promptFile), as: UTF8.self) }
    if Terminal.isInputInteractive { return "" }
    return String(decoding: Files.readStandardInput(), as: UTF8.self)
  }

  private struct Result: Encodable {
    var prompt, text: String
    var promptTokens, tokens: Int
    var ending: GenerationSummary.Ending
    var prefillSeconds, tokensPerS: Double
  }
}
