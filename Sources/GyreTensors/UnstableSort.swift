/// The order that the C++ standard library's `std::sort` gives equal keys, as GCC's library has it: an
/// introspective sort, quick sort by the median of three down to 16 elements, heap sort where the
/// recursion is too deep, insertion sort at the end. Musser, "Introspective sorting and selection
/// algorithms", 1997.
///
/// Sorting by key alone is all that such code promises; programs that read the order of equals depend
/// on these steps, and to be equal to them is all that this is for.
public enum UnstableSort {
  /// Positions of `keys` in ascending order of the keys.
  public static func order(_ keys: [Int]) -> [Int] {
    var items = keys.indices.map { Item(key: keys[$0], position: $0) }
    guard items.count > 1 else { return items.map(\.position) }
    divide(&items, 0, items.count, depth(items.count))
    insert(&items)
    return items.map(\.position)
  }

  /// Partitions of a piece until it is sorted by heap.
  static func depth(_ count: Int) -> Int { 2 * (Int.bitWidth - 1 - count.leadingZeroBitCount) }

  private struct Item {
    var key, position: Int
  }
  /// Pieces of no more than so many elements are left to the insertion sort.
  private static let smallest = 16

  private static func divide(_ a: inout [Item], _ first: Int, _ end: Int, _ depth: Int) {
    var (end, depth) = (end, depth)
    while end - first > smallest {
      guard depth > 0 else { return heapSort(&a, first, end) }
      depth -= 1
      let cut = partition(&a, first, end)
      divide(&a, cut, end, depth)
      end = cut
    }
  }

  /// Moves the median of the second, the middle and the last element to the front, and parts the rest
  /// by it; elements equal to it may end on either side.
  private static func partition(_ a: inout [Item], _ first: Int, _ end: Int) -> Int {
    let (x, y, z) = (first + 1, first + (end - first) / 2, end - 1)
    let (kx, ky, kz) = (a[x].key, a[y].key, a[z].key)
    let median: Int
    if kx < ky {
      median = ky < kz ? y : kx < kz ? z : x
    } else {
      median = kx < kz ? x : ky < kz ? z : y
    }
    a.swapAt(first, median)
    let pivot = a[first].key
    var (low, high) = (first + 1, end)
    while true {
      while a[low].key < pivot { low += 1 }
      high -= 1
      while pivot < a[high].key { high -= 1 }
      if low >= high { return low }
      a.swapAt(low, high)
      low += 1
    }
  }

  private static func insert(_ a: inout [Item]) {
    for i in 1..<a.count {
      let item = a[i]
      var j = i
      while j > 0, item.key < a[j - 1].key {
        a[j] = a[j - 1]
        j -= 1
      }
      a[j] = item
    }
  }

  private static func heapSort(_ a: inout [Item], _ first: Int, _ end: Int) {
    let count = end - first
    for parent in stride(from: (count - 2) / 2, through: 0, by: -1) {
      sink(&a, first, parent, count, a[first + parent])
    }
    for last in stride(from: count - 1, to: 0, by: -1) {
      let item = a[first + last]
      a[first + last] = a[first]
      sink(&a, first, 0, last, item)
    }
  }

  /// Moves the hole down along the larger children to a leaf, then the item up from there.
  private static func sink(
    _ a: inout [Item], _ first: Int, _ top: Int, _ count: Int, _ item: Item
  ) {
    var (hole, child) = (top, top)
    while child < (count - 1) / 2 {
      child = 2 * (child + 1)
      if a[first + child].key < a[first + child - 1].key { child -= 1 }
      a[first + hole] = a[first + child]
      hole = child
    }
    if count.isMultiple(of: 2), child == (count - 2) / 2 {
      child = 2 * child + 1
      a[first + hole] = a[first + child]
      hole = child
    }
    while hole > top, a[first + (hole - 1) / 2].key < item.key {
      a[first + hole] = a[first + (hole - 1) / 2]
      hole = (hole - 1) / 2
    }
    a[first + hole] = item
  }
}
