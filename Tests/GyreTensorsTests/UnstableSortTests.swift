import GyreTensors
import Testing

@Suite struct UnstableSortTests {
  /// What `torch.tensor(keys).argsort()` of PyTorch 2.13 gives on a CPU.
  @Test func ordersEqualsAsTheStandardLibraryDoes() {
    #expect(UnstableSort.order([Int](repeating: 0, count: 16)) == Array(0..<16))
    #expect(
      UnstableSort.order([Int](repeating: 0, count: 24))
        == [12, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 0, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1])
    let keys = (0..<40).map { $0 * 7 % 4 }
    #expect(
      UnstableSort.order(keys) == [
        0, 36, 4, 32, 28, 8, 24, 12, 20, 16, 39, 35, 31, 27, 23, 19, 15, 7, 3, 11,
        10, 6, 30, 34, 26, 2, 22, 38, 14, 18, 1, 37, 33, 5, 29, 9, 25, 21, 13, 17,
      ])
  }

  @Test func sortsAnyKeys() {
    for count in [0, 1, 2, 17, 300, 3000] {
      // The last pattern drives the median of three to its worst case, and so the heap sort.
      for keys in [
        (0..<count).map { $0 * 7919 % 5 }, (0..<count).map { -$0 },
        (0..<count).map { $0.isMultiple(of: 2) ? $0 / 2 : count - $0 },
        worst(count),
      ] {
        let order = UnstableSort.order(keys)
        #expect(order.sorted() == Array(0..<count))
        #expect(order.map { keys[$0] } == keys.sorted())
      }
    }
  }

  /// Musser's sequence: each median of three is the second smallest.
  private func worst(_ count: Int) -> [Int] {
    let half = count / 2
    return (0..<count).map { i in
      i < half ? (i.isMultiple(of: 2) ? i + 1 : half + i + half % 2) : 2 * (i - half) + 2
    }
  }
}
