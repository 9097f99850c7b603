import ArgumentParser

@main
struct Tool: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "gyre",
    abstract: "Recurrent sequence models: train, generate, measure, check.",
    discussion: """
      Start here:

        gyre train                 train the small default model on the built-in text (minutes)
        gyre generate runs/tiny-1  let it write
        gyre inspect runs/tiny-1   see what is inside
        gyre evolve --model egg    train without gradients, in whole numbers of 8 bits

      Every command that prints figures takes --json. Devices are named cpu, cpu:avx2, reference;
      a name that does not exist lists those that do.
      """,
    version: "0.1.0",
    subcommands: [
      Train.self, Evolve.self, Generate.self, Evaluate.self, Logits.self, Convert.self,
      Inspect.self, Tasks.self, Bench.self,
      Doctor.self,
    ])

  static func main() async {
    Interrupts.ignoreBrokenPipes()
    var command: any ParsableCommand
    do { command = try parseAsRoot() } catch { exit(withError: error) }
    do {
      if var asynchronous = command as? any AsyncParsableCommand {
        try await asynchronous.run()
      } else {
        try command.run()
      }
    } catch {
      // Help, the version, usage errors and plain exit codes are the parser's to print.
      guard exitCode(for: error) == .failure, !(error is ExitCode) else { exit(withError: error) }
      Terminal.complain(error)
      exit(withError: ExitCode(1))
    }
  }
}
