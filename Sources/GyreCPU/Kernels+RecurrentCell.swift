import CGyreKernels
import GyreRecurrence
import GyreTensors

extension CPUKernel {
  static let recurrentCells: [CPUKernel] = [
    CPUKernel(RecurrentCellForward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      let memory = CallMemory()
      let (plan, parts) = (op.plan, op.plan.parts)
      let x = call.inputs[0].shape
      var arrays = inputArrays(parts, call.inputs[0])
      for s in parts.states.indices {
        arrays.append(array(op.historyPlace(s).map { call.outputs[$0] }))
      }
      for p in plan.products.indices {
        arrays.append(array(op.keptPlace(p).map { call.outputs[$0] }))
      }
      var a = arguments(op, call.inputs, arrays, memory)
      a.code = code(plan.forward, memory)
      a.states = memory.array(
        parts.states.indices.map { s in
          var state = blank(parts.states[s])
          state.first = op.optional.pick(op.statePlace(s), call.inputs)?.constant
          state.last = call.outputs[1 + s].f32
          return state
        })
      a.history_array = plan.historyArray(0)
      a.report = call.outputs[op.reportPlace].f32
      if op.isNewton, let jacobian = plan.jacobian {
        a.jacobian = code(jacobian, memory)
        k.recurrentCell.forward_newton(&a)
      } else if op.isNewton {
        k.recurrentCell.forward_frozen(&a)
      } else {
        for i in 0..<4 { a.report?[i] = 0 }
        if x[1] > 0 || x[0] > 0 { k.recurrentCell.forward(&a) }
      }
      return true
    },
    CPUKernel(RecurrentCellBackward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      let memory = CallMemory()
      let (plan, parts, forward) = (op.plan, op.plan.parts, op.forward)
      let rest = Array(call.inputs[op.inputCount...])
      var arrays = inputArrays(parts, call.inputs[0])
      arrays += plan.products.indices.map { array(op.extra.pick(op.keptPlace($0), rest)) }
      arrays.append(array(op.extra.pick(op.outputCotangentPlace, rest)))
      arrays += inputArrays(parts, call.outputs[0])
      arrays += plan.products.indices.map { array(call.outputs[op.productPlace($0)]) }
      arrays += plan.operandSpaces.indices.map { array(call.outputs[op.operandPlace($0)]) }
      var a = arguments(forward, call.inputs, arrays, memory) { call.outputs[1 + $0].f32 }
      a.code = code(plan.adjoint, memory)
      a.states = memory.array(
        parts.states.indices.map { s in
          var state = blank(parts.states[s])
          state.first = op.extra.pick(op.finalPlace(s), rest)?.constant
          state.last = op.statePlace(s).flatMap { call.outputs[$0].f32 }
          state.start = forward.optional.pick(forward.statePlace(s), call.inputs)?.constant
          state.history = op.extra.pick(s, rest)?.constant
          return state
        })
      a.output_array = plan.outputCotangentArray
      a.output_state = plan.description.output
      if forward.isNewton, let jacobian = plan.jacobian {
        a.jacobian = code(jacobian, memory)
        k.recurrentCell.backward_scan(&a)
      } else {
        k.recurrentCell.backward(&a)
      }
      return true
    },
  ]

  private static func blank(_ s: CellParts.StateEntry) -> ck_rc_state {
    var state = ck_rc_state()
    state.space = Int32(s.space)
    state.initial = Float(s.initial)
    state.low = Float(s.bounds?.lowerBound ?? -.infinity)
    state.high = Float(s.bounds?.upperBound ?? .infinity)
    return state
  }

  /// A `[B, T, W]` tensor as an array of the code; absent where there is none.
  private static func array(_ t: Tensor?) -> ck_rc_array {
    guard let t else { return ck_rc_array() }
    let width = t.shape.last
    return ck_rc_array(data: t.f32, row: t.shape[1] * width, step: width)
  }

  /// The gates of pre-activations, or of their gradient, side by side.
  private static func inputArrays(_ parts: CellParts, _ t: Tensor) -> [ck_rc_array] {
    var offset = 0
    return parts.inputs.map { input in
      var part = array(t)
      part.data = part.data.map { $0 + offset }
      offset += parts.spaces[input.space]
      return part
    }
  }

  private static func arguments(
    _ op: RecurrentCellForward, _ inputs: [Tensor], _ arrays: [ck_rc_array], _ memory: CallMemory,
    gradient: (Int) -> UnsafeMutablePointer<Float>? = { _ in nil }
  ) -> ck_rc_args {
    let parts = op.plan.parts
    var a = ck_rc_args()
    (a.batch, a.tokens) = (inputs[0].shape[0], inputs[0].shape[1])
    a.widths = memory.array(parts.spaces.map(Int64.init))
    a.arrays = memory.array(arrays)
    a.matrices = memory.array(
      parts.matrices.enumerated().map { i, m in
        let shape = parts.shape(m)
        return ck_rc_matrix(
          weights: op.optional.pick(op.matrixPlace(i), inputs)?.constant, heads: m.heads,
          rows: shape[1], columns: shape[2], is_shared: m.isShared)
      })
    a.parameters = memory.array(
      parts.parameters.enumerated().map { i, p in
        ck_rc_parameter(
          space: Int32(p.space), values: op.optional.pick(op.parameterPlace(i), inputs)?.constant,
          gradient: gradient(i))
      })
    a.matrix_count = parts.matrices.count
    a.parameter_count = parts.parameters.count
    a.state_count = parts.states.count
    a.reset = op.optional.pick(op.resetPlace, inputs)?.resets
    a.mixes = !op.plan.isDiagonal
    return a
  }

  private static func code(_ c: CellCode, _ memory: CallMemory) -> ck_rc_code {
    let instructions = c.instructions.map { i in
      ck_rc_instruction(
        op: Int32(operation(i.action).rawValue), target: Int32(i.target), a: Int32(i.a),
        b: Int32(i.b), index: Int32(i.index), constant: Float(i.constant))
    }
    let groups = c.groups.map {
      ck_rc_group(space: Int32($0.space), first: Int32($0.first), count: Int32($0.count))
    }
    return ck_rc_code(
      instructions: memory.array(instructions), groups: memory.array(groups),
      tile_spaces: memory.array(c.tileSpaces.map(Int32.init)), group_count: groups.count,
      slot_count: c.slots, tile_count: c.tileSpaces.count)
  }

  private static func operation(_ action: CellCode.Action) -> ck_rc_op {
    switch action {
    case .load: CK_RC_LOAD
    case .store: CK_RC_STORE
    case .copy: CK_RC_COPY
    case .accumulate: CK_RC_ACCUMULATE
    case .compute(let operation):
      switch operation {
      // Leaves are loads or tiles; only constants are computed.
      case .constant, .input, .state, .parameter, .kept, .cotangent: CK_RC_CONSTANT
      case .product: CK_RC_PRODUCT
      case .transposed: CK_RC_TRANSPOSED
      case .add: CK_RC_ADD
      case .subtract: CK_RC_SUBTRACT
      case .multiply: CK_RC_MULTIPLY
      case .divide: CK_RC_DIVIDE
      case .scale: CK_RC_SCALE
      case .offset: CK_RC_OFFSET
      case .from: CK_RC_FROM
      case .over: CK_RC_OVER
      case .tanh: CK_RC_TANH
      case .sigmoid: CK_RC_SIGMOID
      case .relu: CK_RC_RELU
      case .exp: CK_RC_EXP
      case .softplus: CK_RC_SOFTPLUS
      case .maximum: CK_RC_MAXIMUM
      case .step: CK_RC_STEP
      case .greater: CK_RC_GREATER
      }
    }
  }
}

/// C arrays that live as long as one call.
private final class CallMemory {
  private var blocks: [UnsafeMutableRawPointer] = []

  func array<T>(_ elements: [T]) -> UnsafePointer<T> {
    let p = UnsafeMutablePointer<T>.allocate(capacity: max(elements.count, 1))
    p.initialize(from: elements, count: elements.count)
    blocks.append(UnsafeMutableRawPointer(p))
    return UnsafePointer(p)
  }

  deinit { for block in blocks { block.deallocate() } }
}
