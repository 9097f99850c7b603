/// What a device was asked to queue, op by op with options, element types and shapes, and what the host
/// wrote meanwhile: equal traces are the same work.
public struct WorkTrace: Sendable, Equatable {
  private struct Entry: Sendable, Equatable {
    var name: String
    var digest: Int
  }
  private var entries: [Entry] = []
  /// What keeps the work from being repeated without the host; nil where nothing does.
  public private(set) var obstacle: String?

  package init() {}
  package init(obstacle: String) { self.obstacle = obstacle }

  /// Ops and writes.
  public var count: Int { entries.count }

  package mutating func add(_ call: KernelCall) {
    var hasher = Hasher()
    hasher.combine(String(describing: call.op))
    for t in call.inputs { hasher.combine(t.spec) }
    for t in call.outputs { hasher.combine(t.spec) }
    entries.append(Entry(name: call.op.name, digest: hasher.finalize()))
  }

  package mutating func add(written bytes: UnsafeRawBufferPointer) {
    var hasher = Hasher()
    hasher.combine(bytes: bytes)
    entries.append(Entry(name: "a write from the host", digest: hasher.finalize()))
  }

  package mutating func hinder(_ reason: String) { if obstacle == nil { obstacle = reason } }

  /// Why work that left this trace cannot stand for work that left `other`; nil where it can.
  public func difference(from other: WorkTrace) -> String? {
    if let obstacle = obstacle ?? other.obstacle { return obstacle }
    if let (a, _) = zip(entries, other.entries).first(where: { $0 != $1 }) {
      return "\(a.name) changes from step to step"
    }
    return count == other.count ? nil : "\(count) ops after \(other.count)"
  }
}

/// A copy to the host that is under way.
public protocol PendingRead: AnyObject, Sendable {
  /// Waits for the copy, not for what was queued after it.
  ///
  /// - Throws: the device's first failure since it was last asked.
  func bytes() throws(DeviceError) -> [UInt8]
}

extension Device {
  public var repeatsWork: Bool { false }
  public func trace(_ body: () -> Void) -> WorkTrace {
    body()
    return WorkTrace(obstacle: "\(id) does not record work")
  }
  public func record(
    repeating trace: WorkTrace, _ body: () -> Void
  ) throws(DeviceError) -> any RecordedWork {
    throw .unavailable(device: id.name, reason: "it does not record work")
  }
  public func queueRead(
    _ buffer: any DeviceBuffer, offset: Int, byteCount: Int
  ) -> any PendingRead { finishedRead(buffer, offset: offset, byteCount: byteCount) }

  /// A read that waits now.
  package func finishedRead(
    _ buffer: any DeviceBuffer, offset: Int, byteCount: Int
  ) -> any PendingRead {
    var found = [UInt8](repeating: 0, count: byteCount)
    let failure: DeviceError? = found.withUnsafeMutableBytes { bytes in
      do throws(DeviceError) {
        try read(buffer, offset: offset, into: bytes)
        return nil
      } catch { return error }
    }
    return FinishedRead(failure.map { .failure($0) } ?? .success(found))
  }
}

/// A read that waited.
package final class FinishedRead: PendingRead {
  private let result: Result<[UInt8], DeviceError>
  package init(_ result: Result<[UInt8], DeviceError>) { self.result = result }
  package func bytes() throws(DeviceError) -> [UInt8] { try result.get() }
}

extension Tensor {
  /// Queues a copy of all elements to the host.
  package func queueRead() -> any PendingRead {
    guard let buffer else {
      return FinishedRead(
        .failure(
          .kernelFailed(kernel: "read", device: device.id.name, reason: "no storage")))
    }
    return device.queueRead(buffer, offset: byteOffset, byteCount: byteCount)
  }

  /// Queues new elements for the tensor's own storage.
  ///
  /// - Precondition: of the tensor's element type, as many as it has.
  package func write<S: HostScalar>(_ elements: [S]) {
    precondition(
      S.dtype == dtype && elements.count == elementCount,
      "write: \(elements.count) \(S.dtype.rawValue) to \(spec)")
    guard let buffer else { return }
    elements.withUnsafeBytes { device.write($0, to: buffer, offset: byteOffset) }
  }
}
