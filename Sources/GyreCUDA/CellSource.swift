import CGyreCUDASources
import GyreRecurrence

/// A described cell as CUDA source: straight-line code of its forward step, Jacobian and adjoint,
/// between the kernels that run it over time (`cell_units.cuh`, `cell_newton.cuh`, `cell_rows.cuh`).
/// The text depends on the cell, not on its sizes.
public struct CellSource {
  /// Nil for cells with more parts than the kernels' arguments have room for.
  public static func text(_ plan: CellPlan) -> String? {
    let parts = plan.parts
    guard parts.states.count <= Int(GYRE_DESCRIBED_STATES),
      parts.parameters.count <= Int(GYRE_DESCRIBED_PARAMETERS),
      max(parts.matrices.count, plan.products.count) <= Int(GYRE_DESCRIBED_MATRICES),
      parts.spaces.count <= Int(GYRE_DESCRIBED_SPACES)
    else { return nil }
    let source = CellSource(plan)
    return plan.isDiagonal ? source.units : source.rows
  }

  private let plan: CellPlan
  private var parts: CellParts { plan.parts }
  private init(_ plan: CellPlan) { self.plan = plan }

  // MARK: - Units that do not mix: values in registers

  private var units: String {
    let inputs = parts.inputs.count
    var lines = preamble
    lines += [
      "enum { INPUTS = \(inputs), OUTPUT = \(plan.description.output) };",
      "enum { FORWARD_TILES = \(plan.forward.tileSpaces.count) };",
      "enum { ADJOINT_TILES = \(plan.adjoint.tileSpaces.count) };",
      numbers("cell_low", parts.states.map { Float($0.bounds?.lowerBound ?? -.infinity) }),
      numbers("cell_high", parts.states.map { Float($0.bounds?.upperBound ?? .infinity) }),
    ]
    lines += function("forward_code(const float *in, float *tile)", plan.forward) { _ in nil }
    if let jacobian = plan.jacobian {
      lines.append("enum { JACOBIAN_TILES = \(jacobian.tileSpaces.count) };")
      lines += function("jacobian_code(const float *in, float *tile)", jacobian) { _ in nil }
    }
    lines += function("adjoint_code(const float *in, float *tile, float *out)", plan.adjoint) {
      $0 > inputs ? "out[\($0 - inputs - 1)]" : nil
    }
    return (lines + ["#include \"cell_units.cuh\""]).joined(separator: "\n") + "\n"
  }

  /// `target` gives where array `i` is written; the kernels write histories themselves.
  private func function(
    _ signature: String, _ code: CellCode, store target: (Int) -> String?
  ) -> [String] {
    ["GYRE_DEVICE void \(signature) {"] + slots(code)
      + code.instructions.compactMap { i in
        statement(
          i, tile: { "tile[\($0)]" }, load: { "in[\($0)]" },
          store: { array, value in target(array).map { "\($0) = \(value);" } })
      } + ["}"]
  }

  // MARK: - Units that mix: values in memory, products between groups

  private var rows: String {
    let (inputs, states) = (parts.inputs.count, parts.states.count)
    func at(_ space: Int) -> String { "(v.b * a.tokens + t) * a.widths[\(space)] + v.u" }
    func input(_ i: Int) -> String {
      let before = parts.inputs[..<i].map { " + a.widths[\($0.space)]" }.joined()
      return "(v.b * a.tokens + t) * a.width\(before) + v.u"
    }
    func ifPresent(_ array: String, _ index: String, _ value: String) -> String {
      "if (present(\(array))) store(\(array), \(index), \(value));"
    }
    var lines = preamble
    lines += [
      "#include \"cell_products.cuh\"",
      "enum { FORWARD_TILES = \(plan.forward.tileSpaces.count) };",
      "enum { ADJOINT_TILES = \(plan.adjoint.tileSpaces.count) };",
      integers("state_space", parts.states.map(\.space)),
      integers("parameter_space", parts.parameters.map(\.space)),
    ]
    lines += step(
      "forward", plan.forward, load: { "load(a.gates, \(input($0)))" },
      store: { array, value in
        if array < inputs + states {
          let s = array - inputs
          return ifPresent("a.states[\(s)].history", at(parts.states[s].space), value)
        }
        let p = array - inputs - states
        return ifPresent("a.products[\(p)]", at(plan.products[p].to), value)
      })
    let output = parts.states[plan.description.output].space
    lines += step(
      "adjoint", plan.adjoint,
      load: { array in
        if array < inputs { return "load(a.gates, \(input(array)))" }
        if array == plan.outputCotangentArray { return "load(a.dy, \(at(output)))" }
        let p = array - inputs
        return "load(a.products[\(p)], \(at(plan.products[p].to)))"
      },
      store: { array, value in
        if array < plan.productCotangentArray(0) {
          return "store(a.dgates, \(input(array - plan.inputCotangentArray(0))), \(value));"
        }
        if array < plan.operandArray(0) {
          let p = array - plan.productCotangentArray(0)
          return "store(a.dproducts[\(p)], \(at(plan.products[p].to)), \(value));"
        }
        let o = array - plan.operandArray(0)
        return "store(a.operands[\(o)], \(at(plan.operandSpaces[o])), \(value));"
      })
    return (lines + ["#include \"cell_rows.cuh\""]).joined(separator: "\n") + "\n"
  }

  private func step(
    _ name: String, _ code: CellCode, load: (Int) -> String, store: (Int, String) -> String?
  ) -> [String] {
    var lines = ["GYRE_DEVICE long \(name)_tile(const gyre_described_args &a, int i) {"]
    lines.append("  long at = 0;")
    for (i, space) in code.tileSpaces.enumerated() {
      lines.append("  if (i > \(i)) at += tile_size(a, \(space));")
    }
    lines += ["  return at;", "}"]
    lines.append(
      "GYRE_DEVICE void \(name)_step(const gyre_described_args &a, const Team &team, long t, "
        + "float *memory) {")
    for i in code.tileSpaces.indices {
      lines.append("float *const t\(i) = memory + \(name)_tile(a, \(i));")
    }
    lines.append("long told = 0;")
    for stage in Self.stages(code) {
      if let group = stage.units {
        lines.append("EACH_UNIT(\(group.space)) {")
        lines += slots(code)
        lines += code.instructions[group.first..<group.first + group.count].compactMap {
          statement($0, tile: { "t\($0)[i]" }, load: load, store: store)
        }
        lines += ["}", "__syncthreads();"]
      } else {
        lines += products(stage.products)
      }
    }
    return lines + ["}"]
  }

  /// What lies between two barriers of a step: units one by one, or products.
  private struct Stage {
    var units: CellCode.Group?
    var products: [CellCode.Instruction] = []
    /// The distinct tiles that are multiplied.
    var operands: [Int] {
      products.reduce(into: []) { if !$0.contains(~$1.a) { $0.append(~$1.a) } }
    }
  }

  private static func stages(_ code: CellCode) -> [Stage] {
    code.groups.reduce(into: []) { stages, group in
      let first = code.instructions[group.first..<group.first + group.count].first
      guard let first, case .compute(let operation) = first.action, operation.isProduct else {
        return stages.append(Stage(units: group))
      }
      // A product of a product waits for it.
      let goesOn =
        stages.last.map { last in
          last.units == nil && !last.products.contains { $0.target == first.a }
        } ?? false
      if !goesOn { stages.append(Stage()) }
      stages[stages.count - 1].products.append(first)
    }
  }

  /// The widths of the vectors that the blocks of a team tell each other at a token.
  static func told(_ code: CellCode, _ parts: CellParts) -> [Int] {
    stages(code).flatMap { $0.operands.map { parts.spaces[code.tileSpaces[$0]] } }
  }

  /// All vectors are told, then one after the other heard and multiplied.
  private func products(_ products: [CellCode.Instruction]) -> [String] {
    let stage = Stage(products: products)
    let members = stage.operands.map { operand in products.filter { ~$0.a == operand } }
    var lines = ["{", "const long slot = t - a.first;"]
    for (i, (operand, members)) in zip(stage.operands, members).enumerated() {
      guard let width = members.first.map({ "a.widths[\(ends($0).from)]" }) else { continue }
      lines += [
        "const long told\(i) = told;", "told += a.rows * told_width(\(width));",
        "tell_team(team, slot, told\(i), t\(operand), \(width));",
      ]
    }
    for (i, (operand, members)) in zip(stage.operands, members).enumerated() {
      lines += ["{", "Need need;"]
      for p in members {
        let (to, from) = ends(p)
        lines.append(
          "need.add(team, a.widths[\(to)], a.widths[\(from)], \(parts.matrices[p.index].heads));")
      }
      guard let from = members.first.map({ ends($0).from }) else { continue }
      lines += [
        "const float *x = hear_team(team, slot, told\(i), t\(operand), a.widths[\(from)], need);",
        "int done = 0;",
      ]
      for p in members {
        let (to, matrix) = (ends(p).to, parts.matrices[p.index])
        let name = isTransposed(p) ? "transposed" : "matrices"
        lines.append(
          "done = team_product(team, done, a.\(name)[\(p.index)], t\(~p.target), x, "
            + "a.widths[\(to)], a.widths[\(from)], \(matrix.heads), \(matrix.isShared));")
      }
      lines += ["__syncthreads();", "}"]
    }
    return lines + ["}"]
  }

  private func isTransposed(_ i: CellCode.Instruction) -> Bool {
    i.action == .compute(.transposed)
  }
  /// The spaces of a product's result and operand.
  private func ends(_ i: CellCode.Instruction) -> (to: Int, from: Int) {
    let matrix = parts.matrices[i.index]
    return isTransposed(i) ? (matrix.from, matrix.to) : (matrix.to, matrix.from)
  }

  // MARK: - Instructions

  private var preamble: [String] {
    [
      "#include \"cell_code.cuh\"",
      "#define STATES \(parts.states.count)", "#define PARAMETERS \(parts.parameters.count)",
      numbers("cell_initial", parts.states.map { Float($0.initial) }),
    ]
  }

  private func numbers(_ name: String, _ values: [Float]) -> String {
    "constexpr float \(name)[] = {\(values.map(literal).joined(separator: ", "))};"
  }
  /// Never empty: C++ has no such array.
  private func integers(_ name: String, _ values: [Int]) -> String {
    "constexpr int \(name)[] = {\((values + [0]).map(String.init).joined(separator: ", "))};"
  }
  private func literal(_ x: Float) -> String {
    if x.isInfinite { return x < 0 ? "-3.4028234663852886e38f" : "3.4028234663852886e38f" }
    let text = "\(x)"
    return (text.contains(".") || text.contains("e") ? text : text + ".0") + "f"
  }

  private func slots(_ code: CellCode) -> [String] {
    code.slots == 0
      ? [] : ["float " + (0..<code.slots).map { "s\($0)" }.joined(separator: ", ") + ";"]
  }

  private func statement(
    _ i: CellCode.Instruction, tile: (Int) -> String, load: (Int) -> String,
    store: (Int, String) -> String?
  ) -> String? {
    func place(_ p: Int) -> String { p >= 0 ? "s\(p)" : tile(~p) }
    let (target, a, b) = (place(i.target), place(i.a), place(i.b))
    let c = literal(Float(i.constant))
    switch i.action {
    case .load: return "\(target) = \(load(i.index));"
    case .store: return store(i.index, a)
    case .copy: return "\(target) = \(a);"
    case .accumulate: return "\(target) += \(a);"
    case .compute(let operation):
      let value: String
      switch operation {
      // Other leaves are loads or tiles; products are groups of their own.
      case .constant, .input, .state, .parameter, .kept, .cotangent, .product, .transposed:
        value = c
      case .add: value = "\(a) + \(b)"
      case .subtract: value = "\(a) - \(b)"
      case .multiply: value = "\(a) * \(b)"
      case .divide: value = "\(a) / \(b)"
      case .scale: value = "\(c) * \(a)"
      case .offset: value = "\(a) + \(c)"
      case .from: value = "\(c) - \(a)"
      case .over: value = "\(c) / \(a)"
      case .tanh: value = "cell_tanh(\(a))"
      case .sigmoid: value = "cell_sigmoid(\(a))"
      case .relu: value = "cell_relu(\(a))"
      case .exp: value = "expf(\(a))"
      case .softplus: value = "cell_softplus(\(a))"
      case .maximum: value = "cell_maximum(\(a), \(b))"
      case .step: value = "\(a) > 0.f ? 1.f : 0.f"
      case .greater: value = "\(a) > \(b) ? 1.f : 0.f"
      }
      return "\(target) = \(value);"
    }
  }
}
