import ArgumentParser
import GyreCheckpoints
import GyreConformance
import GyrePlatform
import GyreRecurrence
import GyreTensors

struct Doctor: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Check that a device computes what the definitions say.",
    discussion: """
      Runs every op, engine and mixer on the device and compares outputs and gradients with the
      definitions in double precision. Exit code 1 when anything fails.

        gyre doctor
        gyre doctor --device cpu:avx2 --report doctor.json
        gyre doctor --vectors vectors/    safetensors files with inputs, outputs and gradients

      A vector file holds in.*, out.y, out.state, cot.y, cot.state and grad.*, and states its
      equation in the metadata; every form is run, and the largest relative error printed. Files of
      EGG hold weights, noise, tokens, states and what follows from them, and must be equal.
      """)

  @OptionGroup var device: DeviceOptions
  @Option(help: "Also write the results as JSON to this file.") var report: String?
  @Option(help: "Check vector files (a folder or one file) instead of the catalogue.")
  var vectors: String?
  @Option(help: "Run only cases whose name contains this.") var only: String?
  @Option(help: "K/N: the Kth of N parts of the cases, to share them out between processes.")
  var part: CasePart?
  @Option(help: "Seed of the inputs.") var seed: UInt64 = 1
  @Flag(help: "Print the results as JSON on standard output.") var json = false
  @Flag(help: "Only list the devices of this machine that have kernels of their own.")
  var list = false
  @Flag(help: "Only compile all kernels that the device compiles at first use, into its cache.")
  var prepare = false

  func run() throws {
    if list {
      for id in Devices.available where id.name != "reference" && id.name != "cpu" {
        Terminal.line(id.name)
      }
      return
    }
    let device = try device.open()
    if prepare { return try compileKernels(device) }
    let passes = try vectors.map { try checkVectors($0, device) } ?? checkCatalog(device)
    if !passes { throw ExitCode(1) }
  }

  private func compileKernels(_ device: any Device) throws {
    var count = 0
    let start = ContinuousClock.now
    let compiles = try Devices.prepare(device) { name in
      count += 1
      if !json { Terminal.note(name) }
    }
    guard compiles else {
      Terminal.line("\(device.id): its kernels are part of this program")
      return
    }
    let seconds = (ContinuousClock.now - start) / .seconds(1)
    Terminal.line(
      "\(Devices.detail(of: device)): \(count) kernel modules ready, \(Format.fixed(seconds, 1)) s")
  }

  private func checkCatalog(_ device: any Device) throws -> Bool {
    let setThreadCount: @Sendable (Int) -> Int = { count in
      defer { Devices.threadCount = count }
      return Devices.threadCount
    }
    let isHostDevice = device.id.name.hasPrefix("cpu")
    let cases = ConformanceCatalog.all(setThreadCount: isHostDevice ? setThreadCount : nil)
      .filter { only.map($0.name.contains) ?? true }
      .enumerated().filter { part?.contains($0.offset) ?? true }.map(\.element)
    guard !cases.isEmpty else { throw Failure("no case's name contains '\(only ?? "")'") }
    var progress = Progress(total: cases.count, unit: "case")
    var done = 0
    let result = ConformanceReport(of: device, cases: cases, seed: seed) { item in
      done += 1
      progress.update(done, item.name)
    }
    progress.end()
    if let report {
      _ = try AtomicFile.write(try JSONOutput.text(result, indented: true) + "\n", to: report)
    }
    if json { try JSONOutput.document(result) } else { Terminal.line(result.table()) }
    if !json { noteReferences(of: device) }
    return result.passes
  }

  /// Which ops ran their definition, with how many calls and one of the shapes.
  private func noteReferences(of device: any Device) {
    var calls: [Substring: (count: Int, example: String)] = [:]
    for (call, count) in Devices.referenceLaunches(of: device).sorted(by: { $0.key < $1.key }) {
      calls[call.prefix { $0 != " " }, default: (0, call)].count += count
    }
    if calls.isEmpty { return }
    Terminal.note("calls that no kernel covers, which ran the definition:")
    for (op, found) in calls.sorted(by: { $0.key < $1.key }) {
      let shapes = found.example.dropFirst(op.count + 1)
      let shown = shapes.count > 80 ? shapes.prefix(79) + "…" : shapes
      Terminal.note("  \(op): \(found.count), such as \(shown)")
    }
  }

  /// One tensor of one file in one form.
  private struct Row: Encodable {
    var file, engine, form, tensor: String
    var maximumError, frobeniusError: Double
    var passes: Bool
  }
  private struct VectorReport: Encodable {
    var device: String
    var passes: Bool
    var results: [Row]
    var failures: [String: String]
  }

  /// Largest relative errors that pass, of outputs and of gradients.
  private static let tolerance = (forward: 2e-5, gradient: 2e-4)

  private func checkVectors(_ path: String, _ device: any Device) throws -> Bool {
    let files = try Files.safetensors(path)
    var rows: [Row] = []
    var failures: [String: String] = [:]
    var table = Table([
      ("file", .left), ("engine", .left), ("largest error", .right),
      ("largest gradient error", .right),
      ("worst", .left), ("", .left),
    ])
    for file in files {
      let name = String(file.split(separator: "/").last ?? "")
      let results: [VectorResult]
      do { results = try VectorFiles.check(path: file, device: device) } catch {
        failures[name] = "\(error)"
        table.add([name, "-", "-", "-", "\(error)", Terminal.styled("FAILED", .red)])
        continue
      }
      let checked = results.map { r in
        let limit =
          r.isExact ? 0 : r.isGradient ? Self.tolerance.gradient : Self.tolerance.forward
        return Row(
          file: name, engine: r.engine, form: r.form.description, tensor: r.tensor,
          maximumError: r.maximumError, frobeniusError: r.frobeniusError, passes: r.worst <= limit)
      }
      rows += checked
      // A NaN is the worst of all.
      func largest(_ gradient: Bool) -> VectorResult? {
        results.filter { $0.isGradient == gradient }.max {
          !$0.worst.isNaN && ($1.worst.isNaN || $0.worst < $1.worst)
        }
      }
      let (forward, gradient) = (largest(false), largest(true))
      let isFine = checked.allSatisfy(\.passes)
      let worst = checked.first { !$0.passes } ?? checked.max { $0.maximumError < $1.maximumError }
      table.add([
        name, results.first?.engine ?? "-", forward.map { Format.error($0.worst) } ?? "-",
        gradient.map { Format.error($0.worst) } ?? "-",
        worst.map { "\($0.tensor), \($0.form)" } ?? "-",
        isFine ? Terminal.styled("ok", .green) : Terminal.styled("FAILED", .red),
      ])
    }
    let passes = failures.isEmpty && rows.allSatisfy(\.passes) && !rows.isEmpty
    let result = VectorReport(
      device: Devices.detail(of: device), passes: passes, results: rows, failures: failures)
    if let report {
      _ = try AtomicFile.write(try JSONOutput.text(result, indented: true) + "\n", to: report)
    }
    if json {
      try JSONOutput.document(result)
    } else {
      table.print()
      Terminal.line(
        "\(result.device): \(files.count) files, \(rows.count) comparisons, \(passes ? "all pass" : "some FAIL")"
      )
    }
    return passes
  }
}

/// Every Nth case, counted from the Kth.
struct CasePart: ExpressibleByArgument {
  var index, count: Int

  init?(argument: String) {
    let numbers = argument.split(separator: "/", omittingEmptySubsequences: false).map { Int($0) }
    guard numbers.count == 2, let k = numbers[0], let n = numbers[1], (1...10_000).contains(n),
      (1...n).contains(k)
    else { return nil }
    (index, count) = (k - 1, n)
  }

  func contains(_ position: Int) -> Bool { position % count == index }
}
