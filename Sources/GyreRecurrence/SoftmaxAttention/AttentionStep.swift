import GyreTensors
import Synchronization

/// A step of decoding whose caches have room for more tokens and whose position lies on the device, so that
/// the same work serves every token: bound to the task by whoever records such a step.
package final class CacheStep: Sendable {
  @TaskLocal package static var current: CacheStep?

  /// Tokens before this one, float32 `[1]`.
  let position: Tensor
  /// Buffers of the caches that attention has written in place.
  private let written = Mutex<Set<ObjectIdentifier>>([])

  package init(position: Tensor) { self.position = position }

  fileprivate func note(_ caches: [Tensor]) {
    written.withLock { all in
      for buffer in caches.compactMap(\.buffer) { all.insert(ObjectIdentifier(buffer)) }
    }
  }
  /// Whether the step did all that it has to with a cache.
  package func hasWritten(_ cache: Tensor) -> Bool {
    cache.buffer.map { buffer in written.withLock { $0.contains(ObjectIdentifier(buffer)) } }
      ?? false
  }
}

/// Rotary positions of a step of decoding: see `Rotary`.
public struct StepRotary: Sendable, Hashable {
  public var base: Double
  public var rotated: Int
  public var interleaved: Bool
  public init(base: Double, rotated: Int, interleaved: Bool) {
    (self.base, self.rotated, self.interleaved) = (base, rotated, interleaved)
  }
}

/// One token of causal softmax attention against caches with room, which take the token's key and value in
/// place; keys are kept turned:
///
///     y = softmax_j(s R_p q · k_j) v_j    j from 0 to p,    k_p = R_p k
///
/// Inputs: q `[B, 1, H, K]`, k, v `[B, 1, Hk, K]`, the caches of keys and values float32 `[B, C, Hk, K]`, the
/// position p float32 `[1]`, below C. Outputs: y `[B, 1, H, K]`, and the caches, which are the same tensors.
public struct AttentionStep: Op {
  public static let name = "attention_step"
  public let scale: Double
  public let rotary: StepRotary?

  public init(scale: Double, rotary: StepRotary?) { (self.scale, self.rotary) = (scale, rotary) }

  /// Whether kernels take heads of that size.
  package static func suits(_ size: Int) -> Bool { size % 4 == 0 && (4...256).contains(size) }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let (q, k, cache) = (i[0].shape, i[1].shape, i[3].shape)
    precondition(
      q.rank == 4 && q[1] == 1 && k[1] == 1 && k == i[2].shape && k[2] > 0 && q[2] % k[2] == 0
        && q[3] == k[3] && cache == i[4].shape && cache[0] == q[0] && cache[2] == k[2]
        && cache[3] == k[3],
      "attention_step: \(i.map(\.shape))")
    return [i[0], i[3], i[4]]
  }

  /// A head at its position.
  private func turned(_ x: ArraySlice<Double>, _ position: Int) -> [Double] {
    let x = Array(x)
    guard let rotary else { return x }
    var y = x
    let half = rotary.rotated / 2
    for i in 0..<half {
      let angle =
        Double(position) * Functions.pow(rotary.base, -2 * Double(i) / Double(rotary.rotated))
      let (first, second) = rotary.interleaved ? (2 * i, 2 * i + 1) : (i, i + half)
      y[first] = x[first] * Functions.cos(angle) - x[second] * Functions.sin(angle)
      y[second] = x[first] * Functions.sin(angle) + x[second] * Functions.cos(angle)
    }
    return y
  }

  public func reference(_ a: inout HostArguments) {
    let (q, cache) = (a.inputSpecs[0].shape, a.inputSpecs[3].shape)
    let (heads, size, room, keyHeads) = (q[2], q[3], cache[1], cache[2])
    let p = Int(a.inputs[5][0])
    (a.outputs[1], a.outputs[2]) = (a.inputs[3], a.inputs[4])
    for b in 0..<q[0] {
      for h in 0..<keyHeads {
        let (from, to) = ((b * keyHeads + h) * size, ((b * room + p) * keyHeads + h) * size)
        let key = turned(a.inputs[1][from..<from + size], p)
        a.outputs[1].replaceSubrange(to..<to + size, with: key)
        a.outputs[2].replaceSubrange(to..<to + size, with: a.inputs[2][from..<from + size])
      }
      for h in 0..<heads {
        let at = (b * heads + h) * size
        let query = turned(a.inputs[0][at..<at + size], p)
        func row(_ j: Int) -> Int { ((b * room + j) * keyHeads + h / (heads / keyHeads)) * size }
        let scores = (0...p).map { j in
          scale * (0..<size).reduce(0) { $0 + query[$1] * a.outputs[1][row(j) + $1] }
        }
        let top = scores.max() ?? 0
        let weights = scores.map { Functions.exp($0 - top) }
        let sum = weights.reduce(0, +)
        for d in 0..<size {
          a.outputs[0][at + d] =
            (0...p).reduce(0) { $0 + weights[$1] * a.outputs[2][row($1) + d] } / sum
        }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public var saved: SavedValues { .none }

  public static let cases = [
    (16, 2, 2, false), (12, 4, 1, true), (128, 4, 2, false), (256, 2, 2, false),
  ]
  .map { size, heads, keyHeads, interleaved in
    let cache: Shape = [3, 70, keyHeads, size]
    return OpCase(
      "\(heads) heads of \(size), \(keyHeads) of keys",
      AttentionStep(
        scale: 0.3,
        rotary: size == 256
          ? nil : StepRotary(base: 10_000, rotated: size / 4 * 2, interleaved: interleaved)),
      [
        TestInput([3, 1, heads, size], differentiable: false),
        TestInput([3, 1, keyHeads, size], differentiable: false),
        TestInput([3, 1, keyHeads, size], differentiable: false),
        TestInput(cache, differentiable: false), TestInput(cache, differentiable: false),
        TestInput([1], .constant(size == 12 ? 0 : 63), differentiable: false),
      ], tolerance: 4e-6)
  }
}

extension SoftmaxAttention {
  /// One token in a step whose caches have room; nil where there is no such step, or a window, forget gates
  /// or document starts, or heads that no kernel takes.
  ///
  /// - Parameter rotary: what turns q and k, which are given unturned.
  public func step(
    q: Tensor, k: Tensor, v: Tensor, rotary: StepRotary?, state: State
  ) -> Tensor? {
    let op = AttentionStep(scale: scale, rotary: rotary)
    guard let step = CacheStep.current, window == nil, !hasForgetGate, q.shape[1] == 1,
      state["starts"] == nil, let keys = state["keys"], let values = state["values"],
      keySize == valueSize, AttentionStep.suits(keySize), q.device.hasKernel(for: op)
    else { return nil }
    let inputs = [q, k, v, keys, values, step.position]
    let y = Tensor(emptyWith: op.infer(inputs.map(\.spec))[0], on: q.device)
    q.device.launch(KernelCall(op: op, inputs: inputs, outputs: [y, keys, values]))
    step.note([keys, values])
    return y
  }
}
