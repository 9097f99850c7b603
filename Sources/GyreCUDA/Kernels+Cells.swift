import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// Elman, GRU, LSTM and sLSTM cells: weights in registers where they fit, else a product and a
/// point-wise kernel a token.
extension CUDAKernel {
  private static func cell(_ name: String) -> CUDAFunction { CUDAFunction("cell_scan_base", name) }
  private static let begin = cell("cell_begin")
  private static let forward = cell("cell_forward")
  private static let backwardBegin = cell("cell_backward_begin")
  private static let backward = cell("cell_backward")
  private static let backwardEnd = cell("cell_backward_end")

  static let cells: [CUDAKernel] = [
    CUDAKernel(CellForward.self) { op, call, launch in
      let x = op.extents(call.inputs.map(\.spec))
      // Cards keep float32, and rows of sequences.
      guard x.tokens > 0, op.kept == .float32, !op.isTimeMajor else { return false }
      guard x.batch > 0 else { return true }
      if CellTeam(op, x)?.forward(op, call, launch) ?? false { return true }
      var a = arguments(op, x, call.inputs)
      let products = CellProducts(op, x, call.inputs[1], launch)
      a.xw = call.inputs[0].array
      a.bias = op.optional.pick(2, call.inputs).array
      let states = x.batch * x.hidden
      a.h = launch.floats(states)
      if op.cell.hasMemory { a.c = launch.floats(states) }
      a.operand = products.operand(states)
      a.product = launch.floats(states * products.gates)
      (a.y, a.h_final) = (call.outputs[0].array, call.outputs[1].array)
      if op.cell.hasMemory { a.c_final = call.outputs[2].array }
      if op.cell == .slstm {
        (a.n, a.m) = (launch.floats(states), launch.floats(states))
        (a.n_final, a.m_final) = (call.outputs[3].array, call.outputs[4].array)
        a.normalizers = op.normalizersPlace.map { call.outputs[$0] }.array
        a.stabilizers = op.stabilizersPlace.map { call.outputs[$0] }.array
      }
      a.gates = op.gatesPlace.map { call.outputs[$0] }.array
      a.cells = op.cellsPlace.map { call.outputs[$0] }.array
      let isOriginal = op.cell == .gruOriginal
      if isOriginal {
        a.gated = products.operand(states)
        a.product2 = launch.floats(states)
      }
      launch.run(begin, channels: states, a)
      for t in 0..<x.tokens {
        a.token = t
        products.forward(a.operand, 0..<products.gates, into: a.product)
        if isOriginal {
          a.phase = 0
          launch.run(forward, channels: states, a)
          products.forward(a.gated, 2..<3, into: a.product2)
          a.phase = 1
        }
        launch.run(forward, channels: states, a)
      }
      return true
    },
    CUDAKernel(CellBackward.self) { op, call, launch in
      let x = op.forward.extents(call.inputs.map(\.spec))
      guard x.tokens > 0, op.forward.kept == .float32, !op.forward.isTimeMajor else { return false }
      guard x.batch > 0 else { return true }
      if CellTeam(op.forward, x)?.backward(op, call, launch) ?? false { return true }
      var a = arguments(op.forward, x, call.inputs)
      let products = CellProducts(op.forward, x, call.inputs[1], launch)
      let rest = Array(call.inputs[op.inputCount...])
      let states = x.batch * x.hidden
      a.y = rest[0].array
      a.gates = op.extra.pick(1, rest).array
      a.cells = op.extra.pick(2, rest).array
      a.dy = op.extra.pick(3, rest).array
      a.dh_final = op.extra.pick(4, rest).array
      a.dc_final = op.extra.pick(5, rest).array
      if op.forward.cell == .slstm {
        a.normalizers = op.extra.pick(6, rest).array
        a.stabilizers = op.extra.pick(7, rest).array
        a.dn_final = op.extra.pick(8, rest).array
        a.dn = launch.floats(states)
        a.dn0 = op.place(6).map { call.outputs[$0] }.array
        a.dm0 = op.place(7).map { call.outputs[$0] }.array
      }
      a.dxw = call.outputs[0].array
      a.dh0 = op.place(3).map { call.outputs[$0] }.array
      a.dc0 = op.place(4).map { call.outputs[$0] }.array
      a.previous = call.outputs[op.previousPlace].array
      if op.forward.cell.isGRU { a.second = call.outputs[op.previousPlace + 1].array }
      a.dh = launch.floats(states)
      if op.forward.cell.hasMemory { a.dc = launch.floats(states) }
      a.dproduct = products.operand(states * products.gates)
      let isOriginal = op.forward.cell == .gruOriginal
      if isOriginal {
        a.dproduct2 = products.operand(states)
        a.dgated = launch.floats(states)
      }
      launch.run(backwardBegin, channels: states, a)
      for t in (0..<x.tokens).reversed() {
        a.token = t
        a.phase = 0
        launch.run(backward, channels: states, a)
        if isOriginal {
          products.backward(a.dproduct2, 2..<3, into: a.dgated, adds: false)
          a.phase = 1
          launch.run(backward, channels: states, a)
        }
        products.backward(a.dproduct, 0..<products.gates, into: a.dh, adds: true)
      }
      launch.run(backwardEnd, channels: states, a)
      return true
    },
  ]

  private static func arguments(
    _ op: CellForward, _ x: CellExtents, _ inputs: [Tensor]
  ) -> gyre_cell_args {
    var a = gyre_cell_args()
    (a.batch, a.tokens, a.heads, a.units) = (x.batch, x.tokens, x.heads, x.units)
    a.cell = Int32(op.cell.number)
    a.h0 = op.optional.pick(3, inputs).array
    a.c0 = op.optional.pick(4, inputs).array
    a.n0 = op.optional.pick(6, inputs).array
    a.m0 = op.optional.pick(7, inputs).array
    a.reset = op.optional.pick(5, inputs).address
    return a
  }
}

extension CellScan.Cell {
  /// Its number in the kernels.
  var number: Int {
    switch self {
    case .elmanTanh: 0
    case .elmanReLU: 1
    case .gru: 2
    case .gruOriginal: 3
    case .lstm: 4
    case .slstm: 5
    }
  }
}

/// The products of a state with the recurrent weight, head by head.
private struct CellProducts {
  private let launch: CUDALaunch
  private let x: CellExtents
  private let type: DType
  private let weight: UInt64
  /// Gates of the first product.
  let gates: Int

  init(_ op: CellForward, _ x: CellExtents, _ weight: Tensor, _ launch: CUDALaunch) {
    self.launch = launch
    self.x = x
    type = op.precision == .bfloat16 ? .bfloat16 : .float32
    self.weight = type == .bfloat16 ? launch.bfloat16(weight) : launch.float32(weight)
    gates = op.cell == .gruOriginal ? 2 : op.cell.gateCount
  }

  /// Memory for what a product reads.
  func operand(_ count: Int) -> gyre_array {
    gyre_array(launch.scratch(type.byteCount * max(count, 1)), type)
  }

  private func problem(_ gates: Range<Int>) -> CUDAProducts.Problem {
    var p = CUDAProducts.Problem()
    (p.m, p.batch) = (x.batch, x.heads)
    (p.aType, p.bType) = (type, type)
    p.b = weight + UInt64(gates.lowerBound * x.units * x.units * type.byteCount)
    p.bStride = x.gates * x.units * x.units
    return p
  }

  /// R h of some gates, `[heads, batch, gates · units]`.
  func forward(_ h: gyre_array, _ gates: Range<Int>, into out: UInt64) {
    var p = problem(gates)
    (p.n, p.k, p.transposesB) = (gates.count * x.units, x.units, true)
    (p.a, p.c) = (h.data, out)
    (p.aStride, p.cStride) = (x.batch * p.k, x.batch * p.n)
    launch.device.multiply(p)
  }

  /// Rᵀ d of some gates, `[heads, batch, units]`.
  func backward(_ d: gyre_array, _ gates: Range<Int>, into out: UInt64, adds: Bool) {
    var p = problem(gates)
    (p.n, p.k) = (x.units, gates.count * x.units)
    (p.a, p.c) = (d.data, out)
    (p.aStride, p.cStride) = (x.batch * p.k, x.batch * p.n)
    p.beta = adds ? 1 : 0
    launch.device.multiply(p)
  }
}
