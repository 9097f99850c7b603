import ArgumentParser
import GyreInference
import Testing

@testable import gyre

@Suite struct ParsingTests {
  @Test func everyCommandTeaches() {
    for command in Tool.configuration.subcommands {
      let help = Tool.helpMessage(for: command, columns: 100)
      #expect(help.contains("USAGE") && help.contains("  gyre "), "\(command)")
      #expect(!command.configuration.abstract.isEmpty)
    }
  }

  @Test func generate() throws {
    let command = try #require(
      Tool.parseAsRoot([
        "generate", "runs/x", "--prompt", "A", "--max-tokens", "0", "--temperature", "0",
        "--top-p", "0.9", "--top-k", "5", "--min-p", "0.1", "--repetition-penalty", "1.2",
        "--stop", "B", "--stop", "C", "--seed", "9", "--json",
      ]) as? Generate)
    let options = command.options()
    #expect(options.maximumTokens == nil && options.stop == ["B", "C"])
    #expect(options.sampling.topK == 5 && options.sampling.seed == 9 && command.json)
  }

  @Test func logits() throws {
    let command = try #require(
      Tool.parseAsRoot(["logits", "d", "--input", "a", "--output", "b", "--form", "parallel"])
        as? Logits)
    #expect(command.form == .parallel && command.device.device == "cpu")
  }

  @Test func measureAndCheck() throws {
    let inspect = try #require(
      Tool.parseAsRoot(["inspect", "p", "--batch", "2", "--length", "9"]) as? Inspect)
    #expect(inspect.batch == 2 && inspect.length == 9)
    let bench = try #require(
      Tool.parseAsRoot(["bench", "--only", "gru", "--dtype", "bf16"]) as? Bench)
    #expect(bench.only == "gru" && bench.dtype == .bf16)
    let doctor = try #require(
      Tool.parseAsRoot(["doctor", "--vectors", "v", "--report", "r", "--part", "2/3"])
        as? Doctor)
    #expect(doctor.vectors == "v" && doctor.report == "r")
    let part = try #require(doctor.part)
    #expect((0..<7).filter(part.contains) == [1, 4])
  }

  @Test(arguments: [
    ["generate", "d", "--top-p", "0"], ["generate", "d", "--prompt", "a", "--prompt-file", "b"],
    ["logits", "d"], ["inspect", "p", "--batch", "0"], ["bench", "--dtype", "f8"],
    ["doctor", "--threads", "0"], ["doctor", "--part", "4/3"], ["doctor", "--part", "1/0"],
    ["generate"], ["nothing"], ["tasks", "--table", "recall"],
    ["train", "--task", "parity", "--resume", "--out", "x"], ["train", "--shortest", "4"],
    ["eval", "x", "y", "--task", "parity"], ["eval", "x", "--lengths", "4,-1"],
  ]) func usageErrors(_ arguments: [String]) {
    do {
      _ = try Tool.parseAsRoot(arguments)
      Issue.record("\(arguments) parsed")
    } catch { #expect(Tool.exitCode(for: error) == .validationFailure) }
  }
}
