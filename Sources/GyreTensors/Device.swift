import Synchronization

/// What a device is called: "reference", "null", "cpu", "cpu:avx512", "cuda:0".
public struct DeviceID: Hashable, Sendable, CustomStringConvertible, ExpressibleByStringLiteral {
  public let name: String
  public init(_ name: String) { self.name = name }
  public init(stringLiteral value: String) { name = value }
  public var description: String { name }
}

/// Memory on a device. Freed, or returned to the device's cache, when released.
public protocol DeviceBuffer: AnyObject, Sendable {
  /// Usable bytes.
  var byteCount: Int { get }
  /// The address for host devices; nil where the host cannot read the memory.
  var hostPointer: UnsafeMutableRawPointer? { get }
}

/// What goes wrong on a device.
public enum DeviceError: Error, Sendable, Equatable, CustomStringConvertible {
  case outOfMemory(requested: Int, inUse: Int, device: String)
  case unavailable(device: String, reason: String)
  case kernelFailed(kernel: String, device: String, reason: String)

  public var description: String {
    switch self {
    case .outOfMemory(let requested, let inUse, let device):
      "\(device): out of memory asking for \(requested) bytes with \(inUse) in use; "
        + "use a smaller batch, a shorter length or activation checkpointing"
    case .unavailable(let device, let reason): "\(device) is not available: \(reason)"
    case .kernelFailed(let kernel, let device, let reason):
      "\(device): kernel \(kernel) failed: \(reason)"
    }
  }
}

/// One in-order queue of work on one piece of hardware.
///
/// Ops do not throw: the first failure is kept and thrown by the next `synchronize()` or host read;
/// launches after a failure do nothing.
public protocol Device: AnyObject, Sendable {
  var id: DeviceID { get }
  /// Reserves memory; contents are undefined.
  func allocate(byteCount: Int) throws(DeviceError) -> any DeviceBuffer
  /// Queues one op.
  func launch(_ call: KernelCall)
  /// Waits for all queued work and throws the first failure since the last call, clearing it.
  func synchronize() throws(DeviceError)
  /// Keeps `error` for the next `synchronize()` unless one is kept already.
  func fail(_ error: DeviceError)
  /// Whether a kernel of the device's own, not the reference, runs this op.
  func hasKernel(for op: any Op) -> Bool
  /// Copies host bytes into a buffer.
  func write(_ bytes: UnsafeRawBufferPointer, to buffer: any DeviceBuffer, offset: Int)
  /// Copies a buffer's bytes to the host after all queued work.
  func read(
    _ buffer: any DeviceBuffer, offset: Int, into bytes: UnsafeMutableRawBufferPointer
  ) throws(DeviceError)
  /// Bytes in use now and at the highest since `resetPeak()`.
  var memory: MemoryReport { get }
  func resetPeakMemory()
  /// Records what `body` queues in place of running it. Memory that `body` releases stays the
  /// recording's own; tensors that it keeps hold the results of each replay.
  ///
  /// - Returns: nil where the device cannot, or where the work depends on more than memory (a position
  ///   in the sequence, a read on the host).
  func record(_ body: () -> Void) -> (any RecordedWork)?
  /// Whether the device decides and repeats whole training steps by itself: it traces, records and reads
  /// without waiting, and has kernels for `StepDecision` and `StateUpdate`.
  var repeatsWork: Bool { get }
  /// Runs `body` and says what it queued.
  func trace(_ body: () -> Void) -> WorkTrace
  /// Records work that has run before, in memory that others may use between replays. Nothing that `body`
  /// makes outlives it: results go into tensors that exist.
  ///
  /// - Parameter trace: what `body` queues, as two runs of it have shown.
  /// - Throws: why the device cannot, such as that `body` queues anything else; it works on.
  func record(
    repeating trace: WorkTrace, _ body: () -> Void
  ) throws(DeviceError) -> any RecordedWork
  /// Queues a copy to the host after all work so far, and goes on.
  func queueRead(
    _ buffer: any DeviceBuffer, offset: Int, byteCount: Int
  ) -> any PendingRead
  /// The output of an op whose memory may be that of an input, because the device's kernel reads every
  /// element before it writes it; nil where there is none.
  func overwrites(_ op: any Op, _ inputs: [Tensor]) -> (input: Int, output: Int)?
  /// Whether activations are kept in bfloat16 where the model computes in it. States, sums inside
  /// ops, losses and parameters stay float32.
  var storesBFloat16: Bool { get }
  /// Whether derivatives of recurrences read the states that forward ops may give out for them; other
  /// devices remember what they need by themselves.
  var readsKeptStates: Bool { get }
  /// Whether recurrent cells pass faster over `[T, B, ·]` than over `[B, T, ·]`.
  var prefersTimeMajor: Bool { get }
  /// Units over all rows of a batch up to which a cell of one or two states whose units do not mix is
  /// faster for all tokens at once than token by token, and tokens from which.
  var newtonRange: (units: Int, tokens: Int) { get }
  /// Whether linear maps and embeddings take a matrix of this type as it is stored in a checkpoint,
  /// beside float32.
  func multiplies(stored type: DType) -> Bool
}

/// Work that was recorded once and can be queued again as it is: the same kernels on the same memory.
public protocol RecordedWork: AnyObject, Sendable {
  /// Queues the work again.
  ///
  /// - Returns: false, and nothing is queued, where others hold memory that it uses or have replaced what
  ///   it reads. It has to be recorded again then.
  @discardableResult func replay() -> Bool
}

extension Device {
  public func record(_ body: () -> Void) -> (any RecordedWork)? { nil }
  public func overwrites(_ op: any Op, _ inputs: [Tensor]) -> (input: Int, output: Int)? { nil }
  public var storesBFloat16: Bool { false }
  public var readsKeptStates: Bool { true }
  public var prefersTimeMajor: Bool { false }

  /// Whether a chain of simple ops should be this one op: where it has a kernel and passes over memory
  /// are what costs. Populations look at simple ops and at those that take members' own parameters.
  package func fuses(_ op: any Op) -> Bool {
    (storesBFloat16 || op is any SavesPasses) && hasKernel(for: op)
      && (Perturbation.current == nil || op is any TakesOwnParameters)
  }
  public var newtonRange: (units: Int, tokens: Int) { (4, 256) }
  public func multiplies(stored type: DType) -> Bool { false }
}

/// An op whose kernels spare passes over memory on every device, processors included.
package protocol SavesPasses {}

/// Bytes that tensors hold on a device.
public struct MemoryReport: Sendable, Equatable {
  public var inUse: Int
  public var peak: Int
  /// Freed bytes that the device keeps for reuse.
  public var cached: Int
  public init(inUse: Int, peak: Int, cached: Int) {
    self.inUse = inUse
    self.peak = peak
    self.cached = cached
  }
}

/// One op to run: what it is, what it reads and what it writes. Outputs are allocated and may be
/// inputs too (in-place updates).
public struct KernelCall: Sendable {
  public let op: any Op
  public let inputs: [Tensor]
  public let outputs: [Tensor]

  public init(op: any Op, inputs: [Tensor], outputs: [Tensor]) {
    self.op = op
    self.inputs = inputs
    self.outputs = outputs
  }
}

/// Keeps the first failure of a device until it is taken.
package final class StickyFailure: Sendable {
  private let stored = Mutex<DeviceError?>(nil)
  package init() {}
  package func set(_ error: DeviceError) { stored.withLock { if $0 == nil { $0 = error } } }
  package var isSet: Bool { stored.withLock { $0 != nil } }
  package func take() throws(DeviceError) {
    let error = stored.withLock { value in
      let taken = value
      value = nil
      return taken
    }
    if let error { throw error }
  }
}
