import CGyreKernels
import GyreTensors

extension CPUKernel {
  static let layout: [CPUKernel] = [
    CPUKernel(Slice.self) { op, call, k in
      for (range, piece) in zip(op.ranges, call.outputs) {
        copyRange(
          from: call.inputs[0], at: range.lowerBound, to: piece, at: 0, count: range.count,
          axis: op.axis, k)
      }
      return true
    },
    CPUKernel(Assemble.self) { op, call, k in
      guard op.tiles else { return false }
      for (range, piece) in zip(op.ranges, call.inputs) {
        copyRange(
          from: piece, at: 0, to: call.outputs[0], at: range.lowerBound, count: range.count,
          axis: op.axis, k)
      }
      return true
    },
    CPUKernel(Permute.self) { op, call, k in
      let source = call.inputs[0].shape
      guard source.rank <= 8 else { return false }
      var steps = [Int](repeating: 1, count: source.rank)
      for i in stride(from: source.rank - 2, through: 0, by: -1) {
        steps[i] = steps[i + 1] * source[i + 1]
      }
      copy(
        call.inputs[0], 0, op.axes.map { steps[$0] }, call.outputs[0], 0, nil,
        shape: call.outputs[0].shape.dimensions, k)
      return true
    },
  ]

  /// Copies `count` entries of an axis between tensors that agree on the other axes.
  private static func copyRange(
    from source: Tensor, at start: Int, to target: Tensor, at place: Int, count: Int, axis: Int,
    _ k: KernelTables
  ) {
    let (outer, from, inner) = source.shape.around(axis)
    let to = target.shape[axis]
    copy(
      source, start * inner, [from * inner, 1], target, place * inner, [to * inner, 1],
      shape: [outer, count * inner], k)
  }

  /// A strided copy; nil target strides: contiguous. Offsets and strides count elements.
  private static func copy(
    _ source: Tensor, _ from: Int, _ steps: [Int], _ target: Tensor, _ to: Int, _ places: [Int]?,
    shape: [Int], _ k: KernelTables
  ) {
    guard !shape.contains(0) else { return }
    let size = source.dtype.byteCount
    var a = ck_copy_args()
    a.rank = Int32(shape.count)
    a.element_size = Int32(size)
    var contiguous = [Int](repeating: 1, count: shape.count)
    for i in stride(from: shape.count - 2, through: 0, by: -1) {
      contiguous[i] = contiguous[i + 1] * shape[i + 1]
    }
    withUnsafeMutableBytes(of: &a.shape) { fill($0, shape) }
    withUnsafeMutableBytes(of: &a.source_stride) { fill($0, steps) }
    withUnsafeMutableBytes(of: &a.destination_stride) { fill($0, places ?? contiguous) }
    a.source = source.hostAddress.map { UnsafeRawPointer($0 + from * size) }
    a.destination = target.hostAddress.map { $0 + to * size }
    k.pointwise.copy(&a)
  }

  private static func fill(_ memory: UnsafeMutableRawBufferPointer, _ values: [Int]) {
    for (i, value) in values.enumerated() {
      memory.storeBytes(of: value, toByteOffset: i * MemoryLayout<Int>.stride, as: Int.self)
    }
  }
}
