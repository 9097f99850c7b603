import CGyreCUDALoader
import GyreDistributed
import GyreTensors
import Synchronization

/// Moves tensors between NVIDIA cards by NCCL, in the queue of the device.
///
/// NCCL's kernels wait for their peers for ever. A watcher looks every second whether one has gone and
/// then aborts, after which the device fails with its name. Where ranks can do without each other
/// between calls, it looks during `gather` alone.
public final class NCCLCommunicator: GroupCommunicator, @unchecked Sendable {
  public let group: RankGroup
  private let card: CUDADevice
  private let table: gyre_nccl
  private let handle: Mutex<Handle>
  private var watcher: Task<Void, Never>?
  private let watchesAlways: Bool
  private let isGathering = Atomic(false)
  private let aside: Mutex<Aside>

  /// The communicator; nil once it was aborted.
  private struct Handle: @unchecked Sendable { var value: UnsafeMutableRawPointer? }

  /// A queue beside the device's, and events at which one waits for the other.
  private struct Aside: @unchecked Sendable {
    var stream, ready, done: gyre_cuda_handle?
    /// Whether sums are under way there.
    var isBusy = false
  }

  /// - Parameter watchesAlways: whether a rank that ends while nothing is exchanged fails the others.
  /// - Throws: `unavailable` when NCCL is missing or the cards cannot reach each other.
  public init(
    _ group: RankGroup, device: CUDADevice, watchesAlways: Bool = true
  ) throws(DeviceError) {
    self.watchesAlways = watchesAlways
    let table = try CUDALibraries.load(device.id.name, gyre_cuda_load_nccl)
    func check(_ code: Int32, _ what: String) throws(DeviceError) {
      guard code == GYRE_NCCL_SUCCESS else {
        throw .unavailable(
          device: device.id.name, reason: "NCCL \(what): \(NCCLCommunicator.text(table, code))")
      }
    }
    _ = device.driver.current
    var identifier = gyre_nccl_identifier()
    if group.rank == 0 { try check(table.identifier(&identifier), "identifier") }
    do throws(GroupError) {
      let bytes = try group.broadcast(withUnsafeBytes(of: &identifier) { Array($0) })
      withUnsafeMutableBytes(of: &identifier) { $0.copyBytes(from: bytes.prefix($0.count)) }
    } catch { throw .unavailable(device: device.id.name, reason: "\(error)") }
    var handle: gyre_cuda_handle?
    try check(
      table.create(&handle, Int32(group.count), identifier, Int32(group.rank)), "start")
    card = device
    self.group = group
    self.table = table
    self.handle = Mutex(Handle(value: handle))
    var aside = Aside()
    let driver = device.driver.current
    let codes = [
      driver.stream_create(&aside.stream, 1), driver.event_create(&aside.ready, 2),
      driver.event_create(&aside.done, 2),
    ]
    if let bad = codes.first(where: { $0 != GYRE_CUDA_SUCCESS }) {
      throw .unavailable(
        device: device.id.name, reason: "no second queue: \(driver.message(bad))")
    }
    self.aside = Mutex(aside)
    watcher = nil
    watcher = Task.detached { [weak self] in
      while !Task.isCancelled {
        try? await Task.sleep(for: .seconds(1))
        guard let self else { return }
        guard self.watchesAlways || self.isGathering.load(ordering: .acquiring) else { continue }
        if let lost = group.firstLost() {
          self.abort("rank \(lost) is gone")
          return
        }
      }
    }
  }

  public var device: any Device { card }

  deinit {
    watcher?.cancel()
    // A rank that has gone would be waited for.
    let end = group.firstLost() == nil ? table.destroy : table.abort
    handle.withLock { if let value = $0.value { _ = end(value) } }
    aside.withLock {
      let driver = card.driver.current
      _ = driver.stream_synchronize($0.stream)
      _ = driver.event_destroy($0.ready)
      _ = driver.event_destroy($0.done)
      _ = driver.stream_destroy($0.stream)
    }
  }

  private static func text(_ table: gyre_nccl, _ code: Int32) -> String {
    table.error_string(code).map { String(cString: $0) } ?? "error \(code)"
  }

  /// Ends all waiting on the card and fails the device.
  private func abort(_ reason: String) {
    handle.withLock {
      guard let value = $0.value else { return }
      fail(reason)
      _ = table.abort(value)
      $0.value = nil
    }
  }

  /// Queues calls of one group in the device's queue, after all before them.
  private func queue(_ calls: (gyre_cuda_handle) -> [Int32]) {
    join()
    start(calls)
  }

  private func start(_ calls: (gyre_cuda_handle) -> [Int32]) {
    card.flush()
    _ = card.driver.current
    let codes = handle.withLock { handle -> [Int32] in
      guard let value = handle.value else { return [] }
      return [table.group_start()] + calls(value) + [table.group_end()]
    }
    if let bad = codes.first(where: { $0 != GYRE_NCCL_SUCCESS && $0 != GYRE_NCCL_IN_PROGRESS }) {
      // When a peer has gone, its name says more than the code.
      let reason =
        group.firstLost().map { "rank \($0) is gone" } ?? NCCLCommunicator.text(table, bad)
      fail(reason)
    }
  }

  private func address(_ tensor: Tensor) -> UInt64? {
    tensor.cudaBuffer.map { $0.address + UInt64(tensor.byteOffset) }
  }

  public func sum(_ tensors: [Tensor]) {
    queue { reduce(tensors, $0, card.stream) }
  }

  public func sumAside(_ tensors: [Tensor]) {
    guard !tensors.isEmpty, !card.failure.isSet else { return }
    card.flush()
    aside.withLock {
      let driver = card.driver.current
      card.check(driver.event_record($0.ready, card.stream), "sums of gradients")
      card.check(driver.stream_wait($0.stream, $0.ready, 0), "sums of gradients")
      let stream = $0.stream
      start { reduce(tensors, $0, stream) }
      $0.isBusy = true
    }
  }

  public func join() {
    aside.withLock {
      guard $0.isBusy else { return }
      let driver = card.driver.current
      card.check(driver.event_record($0.done, $0.stream), "sums of gradients")
      card.check(driver.stream_wait(card.stream, $0.done, 0), "sums of gradients")
      $0.isBusy = false
    }
  }

  private func reduce(
    _ tensors: [Tensor], _ communicator: gyre_cuda_handle, _ stream: gyre_cuda_handle?
  ) -> [Int32] {
    distinct(tensors).compactMap { tensor in
      guard let address = address(tensor) else { return nil }
      tensor.cudaBuffer?.changed()
      return table.all_reduce(
        address, address, tensor.elementCount, Int32(GYRE_NCCL_FLOAT32), Int32(GYRE_NCCL_SUM),
        communicator, stream)
    }
  }

  public func gather(_ tensor: Tensor) -> Tensor {
    let all = Tensor(
      emptyWith: TensorSpec(Shape([count] + tensor.shape.dimensions), tensor.dtype), on: card)
    guard let from = address(tensor), let to = address(all) else { return all }
    isGathering.store(true, ordering: .releasing)
    defer { isGathering.store(false, ordering: .releasing) }
    queue { communicator in
      [
        table.all_gather(
          from, to, tensor.byteCount, Int32(GYRE_NCCL_UINT8), communicator, card.stream)
      ]
    }
    // The watcher ends what a lost rank would make wait for ever.
    if !watchesAlways {
      do throws(DeviceError) { try card.synchronize() } catch { card.fail(error) }
    }
    return all
  }

  public func send(_ tensors: [Tensor], to rank: Int) {
    queue { communicator in
      tensors.compactMap { tensor in
        address(tensor).map {
          table.send(
            $0, tensor.byteCount, Int32(GYRE_NCCL_UINT8), Int32(rank), communicator,
            card.stream)
        }
      }
    }
  }

  public func receive(into tensors: [Tensor], from rank: Int) {
    queue { communicator in
      tensors.compactMap { tensor in
        tensor.cudaBuffer?.changed()
        return address(tensor).map {
          table.receive(
            $0, tensor.byteCount, Int32(GYRE_NCCL_UINT8), Int32(rank), communicator,
            card.stream)
        }
      }
    }
  }
}
