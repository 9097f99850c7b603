import GyreMixers
import GyreRecurrence
import GyreTensors

/// The laws of every mixer, and so of every engine: all ways to evaluate a sequence agree, in
/// outputs, states and gradients.
enum CheckMixer {
  static func cases(_ type: any SequenceMixer.Type) -> [ConformanceCase] { make(type) }

  private static func make<M: SequenceMixer>(_ type: M.Type) -> [ConformanceCase] {
    M.testConfigurations.enumerated().flatMap { index, configuration in
      laws.map { law in
        var tags: Set<ConformanceCase.Tag> = [.mixer]
        if law.isSmall && index == 0 { tags.insert(.small) }
        return ConformanceCase("mixer \(M.kind) \(index) \(law.name)", tags) { check in
          let seed = check.seed
          let make = { (device: any Device) throws in
            try MixerSubject(type, configuration, seed: seed, on: device)
          }
          try law.body(make, &check)
        }
      }
    }
  }

  private typealias Make = (any Device) throws -> MixerSubject
  private struct Law: Sendable {
    let name: String
    let isSmall: Bool
    let body: @Sendable (Make, inout Check) throws -> Void
  }
  private static let laws = [
    Law(name: "definition", isSmall: true) { try definition($0, &$1) },
    Law(name: "forms", isSmall: true) { try forms($0, &$1) },
    Law(name: "splits", isSmall: true) { try splits($0, &$1) },
    Law(name: "documents", isSmall: true) { try documents($0, &$1) },
    Law(name: "rows", isSmall: false) { try rows($0, &$1) },
    Law(name: "states", isSmall: true) { try states($0, &$1) },
    Law(name: "lengths", isSmall: false) { try lengths($0, &$1) },
    Law(name: "saturation", isSmall: false) { try saturation($0, &$1) },
  ]

  private static func sequence(
    _ name: String, _ check: Check, batch: Int, tokens: Int, width: Int = 32
  ) -> HostSequence {
    HostSequence(check.normals(name, batch * tokens * width), [batch, tokens, width])
  }

  private static func compare(
    _ what: String, _ y: MixerResult, _ r: MixerResult, _ check: inout Check
  ) {
    check.compare(what + " outputs", y.y, r.y, Tolerance.outputs)
    check.compare(what + " gradient of x", y.dx, r.dx, Tolerance.gradients)
    for name in r.states.keys.sorted() {
      check.compare(
        "\(what) state \(name)", y.states[name] ?? [.nan], r.states[name] ?? [], Tolerance.outputs)
    }
    for name in r.dStates.keys.sorted() {
      check.compare(
        "\(what) gradient of state \(name)", y.dStates[name] ?? [.nan], r.dStates[name] ?? [],
        Tolerance.gradients)
    }
    compareParameters(what, y.dParameters, r.dParameters, &check)
  }

  /// Parameters together: single ones may have gradients that are nearly zero.
  private static func compareParameters(
    _ what: String, _ y: [[Double]], _ r: [[Double]], _ check: inout Check
  ) {
    check.compare(
      what + " gradient of parameters", Array(y.joined()), Array(r.joined()), Tolerance.gradients)
  }

  /// Random cotangents for the entries of a final state.
  private static func cotangents(_ state: State, _ check: Check) -> [String: [Float]] {
    Dictionary(
      uniqueKeysWithValues: state.tensors.map {
        ($0.name, check.normals("cotangent " + $0.name, $0.tensor.elementCount))
      })
  }

  /// The device against the reference device.
  private static func definition(_ make: Make, _ check: inout Check) throws {
    let x = sequence("x", check, batch: 2, tokens: 21)
    let warm = sequence("warm", check, batch: 2, tokens: 5)
    let c = sequence("dy", check, batch: 2, tokens: 21)
    let segment = Segment(x: x, cotangent: c, form: .chunkwise(size: 8), resets: [13])
    let (actual, expected) = (try make(check.device), try make(ReferenceDevice()))
    let start = expected.warmed(warm)
    let probe = try expected.outputs([segment], from: start)
    let weights = cotangents(probe.final, check)
    compare(
      "reference",
      try actual.run([segment], from: actual.warmed(warm), stateCotangents: weights),
      try expected.run([segment], from: start, stateCotangents: weights), &check)
  }

  /// Recurrent, chunkwise and parallel evaluation from a warm state.
  private static func forms(_ make: Make, _ check: inout Check) throws {
    let subject = try make(check.device)
    let tokens = 37
    let x = sequence("x", check, batch: 2, tokens: tokens)
    let c = sequence("dy", check, batch: 2, tokens: tokens)
    let start = subject.warmed(sequence("warm", check, batch: 2, tokens: 5))
    func segment(_ form: SequenceForm) -> [Segment] { [Segment(x: x, cotangent: c, form: form)] }
    let weights = cotangents(try subject.outputs(segment(.recurrent), from: start).final, check)
    let recurrent = try subject.run(segment(.recurrent), from: start, stateCotangents: weights)
    check.finite("outputs", recurrent.y)
    let others = [1, 3, 16, 64, tokens + 1].map { SequenceForm.chunkwise(size: $0) } + [.parallel]
    for form in others {
      compare(
        "\(form)", try subject.run(segment(form), from: start, stateCotangents: weights), recurrent,
        &check)
    }
  }

  /// One piece, two pieces, one token at a time.
  private static func splits(_ make: Make, _ check: inout Check) throws {
    let subject = try make(check.device)
    let tokens = 23
    let x = sequence("x", check, batch: 2, tokens: tokens)
    let c = sequence("dy", check, batch: 2, tokens: tokens)
    func pieces(_ cuts: [Int], _ form: SequenceForm) -> [Segment] {
      zip([0] + cuts, cuts + [tokens]).map {
        Segment(x: x[tokens: $0..<$1], cotangent: c[tokens: $0..<$1], form: form)
      }
    }
    let weights = cotangents(try subject.outputs(pieces([], .chunkwise)).final, check)
    let whole = try subject.run(pieces([], .chunkwise(size: 8)), stateCotangents: weights)
    for cut in [1, 8, 22] {
      compare(
        "cut at \(cut)",
        try subject.run(pieces([cut], .chunkwise(size: 8)), stateCotangents: weights), whole, &check
      )
    }
    compare(
      "token by token",
      try subject.run(pieces(Array(1..<tokens), .recurrent), stateCotangents: weights), whole,
      &check)
  }

  /// Packed documents against each alone, the last one short and continued in another call.
  private static func documents(_ make: Make, _ check: inout Check) throws {
    let subject = try make(check.device)
    let (starts, packed, all) = ([0, 9, 10, 27], 29, 36)
    let x = sequence("x", check, batch: 2, tokens: all)
    let c = sequence("dy", check, batch: 2, tokens: all)
    for form in [SequenceForm.recurrent, .chunkwise(size: 16)] {
      let together = try subject.run([
        Segment(
          x: x[tokens: 0..<packed], cotangent: c[tokens: 0..<packed], form: form,
          resets: Array(starts.dropFirst())),
        Segment(x: x[tokens: packed..<all], cotangent: c[tokens: packed..<all], form: form),
      ])
      var parameters: [[Double]] = []
      let width = subject.width
      func part(_ values: [Double], _ range: Range<Int>) -> [Double] {
        (0..<2).flatMap { b in
          values[(b * all + range.lowerBound) * width..<(b * all + range.upperBound) * width]
        }
      }
      for (start, end) in zip(starts, starts.dropFirst() + [all]) {
        let alone = try subject.run([
          Segment(x: x[tokens: start..<end], cotangent: c[tokens: start..<end], form: form)
        ])
        check.compare(
          "\(form) document at \(start) outputs", part(together.y, start..<end), alone.y,
          Tolerance.outputs)
        check.compare(
          "\(form) document at \(start) gradient of x", part(together.dx, start..<end), alone.dx,
          Tolerance.gradients)
        parameters =
          parameters.isEmpty
          ? alone.dParameters
          : zip(parameters, alone.dParameters).map { zip($0, $1).map { $0 + $1 } }
      }
      compareParameters("\(form)", together.dParameters, parameters, &check)
    }
  }

  /// A row of a batch against the row alone.
  private static func rows(_ make: Make, _ check: inout Check) throws {
    let subject = try make(check.device)
    let x = sequence("x", check, batch: 3, tokens: 19)
    let c = sequence("dy", check, batch: 3, tokens: 19)
    let together = try subject.run([Segment(x: x, cotangent: c, form: .chunkwise(size: 8))])
    let n = together.y.count / 3
    var parameters: [[Double]] = []
    for b in 0..<3 {
      let alone = try subject.run([
        Segment(x: x.row(b), cotangent: c.row(b), form: .chunkwise(size: 8))
      ])
      check.compare(
        "row \(b) outputs", Array(together.y[b * n..<(b + 1) * n]), alone.y, Tolerance.outputs)
      check.compare(
        "row \(b) gradient of x", Array(together.dx[b * n..<(b + 1) * n]), alone.dx,
        Tolerance.gradients)
      for (name, values) in alone.states {
        let m = values.count
        check.compare(
          "row \(b) state \(name)", Array((together.states[name] ?? [])[b * m..<(b + 1) * m]),
          values,
          Tolerance.outputs)
      }
      parameters =
        parameters.isEmpty
        ? alone.dParameters
        : zip(parameters, alone.dParameters).map { zip($0, $1).map { $0 + $1 } }
    }
    compareParameters("rows", together.dParameters, parameters, &check)
  }

  /// States are values: copies do not see each other, rows can be taken, bytes restore them.
  private static func states(_ make: Make, _ check: inout Check) throws {
    let subject = try make(check.device)
    let start = subject.warmed(sequence("warm", check, batch: 3, tokens: 7))
    let entries = start.tensors
    for (name, t) in entries {
      check.require("state \(name) is float32 by rows", t.dtype == .float32 && t.shape[0] == 3)
    }
    let contents = try entries.map { try $0.tensor.doubles() }
    let next = sequence("next", check, batch: 3, tokens: 6)
    let other = sequence("other", check, batch: 3, tokens: 6)
    func continued(_ x: HostSequence, _ state: State, _ form: SequenceForm = .recurrent) throws
      -> [Double]
    {
      var values: [Double] = []
      var state = state
      for t in 0..<x.tokens {
        let token = x[tokens: t..<t + 1]
        let step = try subject.outputs(
          [Segment(x: token, cotangent: token, form: form)], from: state)
        values += step.y
        state = step.final
      }
      return values
    }
    let first = try continued(next, start)
    _ = try continued(other, start)
    check.identical("the original after forks", try continued(next, start), first)
    for (i, entry) in entries.enumerated() {
      check.identical("state \(entry.name) unchanged", try entry.tensor.doubles(), contents[i])
    }

    var restored = subject.fresh(batch: 3)
    for (name, t) in entries {
      restored[name] = Tensor(try t.floats(), shape: t.shape, on: check.device)
    }
    restored.tokenCount = start.tokenCount
    check.identical("restored from bytes", try continued(next, restored), first)

    let order = [2, 0, 2]
    let picked = HostSequence(order.flatMap { next.row($0).values }, next.shape)
    let d = subject.width
    var gathered: [Double] = []
    for t in 0..<next.tokens {
      for b in order { gathered += first[(t * 3 + b) * d..<(t * 3 + b + 1) * d] }
    }
    check.compare(
      "rows gathered", try continued(picked, start.rows(order)), gathered, Tolerance.outputs)
  }

  /// Lengths around chunk borders, one token, none, no rows, and a thousand tokens.
  private static func lengths(_ make: Make, _ check: inout Check) throws {
    let subject = try make(check.device)
    for tokens in [1, 63, 65, 1000] {
      let x = sequence("x", check, batch: 1, tokens: tokens)
      let definition = try subject.outputs([Segment(x: x, cotangent: x, form: .recurrent)])
      let chunked = try subject.outputs([Segment(x: x, cotangent: x, form: .chunkwise)])
      check.compare(
        "\(tokens) tokens", chunked.y, definition.y,
        tokens < 1000 ? Tolerance.outputs : Tolerance.extremes)
    }
    for (batch, tokens) in [(0, 5), (2, 0)] {
      var state = subject.fresh(batch: batch)
      let x = Tensor([Float](), shape: [batch, tokens, subject.width], on: check.device)
      let y = subject.forward(x, &state, .chunkwise)
      check.require(
        "\(batch) rows of \(tokens) tokens", try y.shape == x.shape && y.floats().isEmpty)
    }
  }

  /// Inputs so large that every gate is open or shut.
  private static func saturation(_ make: Make, _ check: inout Check) throws {
    let subject = try make(check.device)
    let x = sequence("x", check, batch: 2, tokens: 40).scaled(by: 30)
    let c = sequence("dy", check, batch: 2, tokens: 40)
    let recurrent = try subject.run([Segment(x: x, cotangent: c, form: .recurrent)])
    let chunked = try subject.run([Segment(x: x, cotangent: c, form: .chunkwise(size: 16))])
    check.finite("outputs", recurrent.y)
    check.finite("gradient of x", recurrent.dx)
    check.compare("outputs", chunked.y, recurrent.y, Tolerance.extremes)
    check.compare("gradient of x", chunked.dx, recurrent.dx, 10 * Tolerance.extremes)
    check.finite("gradient of parameters", Array(chunked.dParameters.joined()))
  }
}
