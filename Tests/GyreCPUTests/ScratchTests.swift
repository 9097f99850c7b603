import CGyreKernels
import Dispatch
import Foundation
import Testing

@Suite("Scratch memory of kernels") struct ScratchTests {
  private func write(_ value: UInt8, _ count: Int) {
    UnsafeMutableRawBufferPointer(start: ck_scratch(count), count: count)
      .initializeMemory(as: UInt8.self, repeating: value)
  }

  /// The first block of a thread is to become a larger one, but an outer mark at its start has not ended:
  /// the inner one must leave it.
  @Test func innerMarksKeepTheFirstBlock() {
    let done = DispatchSemaphore(value: 0)
    let thread = Thread {
      let first = ck_scratch_begin()
      write(1, 100)
      let within = ck_scratch_begin()
      write(2, 5 << 20)
      ck_scratch_end(within)
      ck_scratch_end(first)

      let outer = ck_scratch_begin()
      let inner = ck_scratch_begin()
      #expect(inner.block == outer.block && inner.offset == 0)
      ck_scratch_end(inner)
      let bytes = UnsafeMutableRawBufferPointer(start: ck_scratch(64), count: 64)
      bytes.initializeMemory(as: UInt8.self, repeating: 3)
      let nested = ck_scratch_begin()
      write(4, 9 << 20)
      ck_scratch_end(nested)
      #expect(bytes.allSatisfy { $0 == 3 })
      ck_scratch_end(outer)
      done.signal()
    }
    thread.start()
    done.wait()
  }
}
