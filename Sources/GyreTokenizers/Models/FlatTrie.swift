/// A byte trie in two flat arrays (Aoe, “An efficient digital search algorithm by using a double-array
/// structure”, 1989): the child of node s by byte c is base[s] + c + 1 if its check is s.
struct FlatTrie: Sendable {
  struct Node: Sendable {
    var base: Int32 = 0
    /// The parent; -1 where no node is.
    var check: Int32 = -1
    /// The token that ends here; -1 for none.
    var value: Int32 = -1
  }

  private(set) var nodes: [Node] = [Node(base: 1, check: 0, value: -1)]

  init() {}

  /// - Parameter keys: byte strings and values; of equal keys the last one counts. Empty keys are ignored.
  init(_ keys: [(key: ArraySlice<UInt8>, value: Int32)]) {
    let order = keys.indices.filter { !keys[$0].key.isEmpty }.sorted { left, right in
      let (a, b) = (keys[left].key, keys[right].key)
      if a.elementsEqual(b) { return left < right }
      return a.lexicographicallyPrecedes(b)
    }
    var firstFree = 1
    var pending: [(node: Int, low: Int, high: Int, depth: Int)] = [(0, 0, order.count, 0)]
    var labels: [(byte: Int, low: Int, high: Int)] = []
    while let (node, low, high, depth) = pending.popLast() {
      labels.removeAll(keepingCapacity: true)
      var index = low
      while index < high {
        let key = keys[order[index]].key
        if key.count == depth {
          nodes[node].value = keys[order[index]].value
          index += 1
          continue
        }
        let byte = key[key.startIndex + depth]
        var end = index + 1
        while end < high {
          let other = keys[order[end]].key
          guard other[other.startIndex + depth] == byte else { break }
          end += 1
        }
        labels.append((Int(byte), index, end))
        index = end
      }
      guard let first = labels.first, let last = labels.last else { continue }
      // First fit, but full regions are left behind so that building stays linear.
      var place = max(firstFree, first.byte + 1)
      var occupied = 0
      let start = place
      var base = 0
      search: while true {
        if place + 256 >= nodes.count {
          nodes.append(contentsOf: repeatElement(Node(), count: max(512, nodes.count / 4)))
        }
        if nodes[place].check >= 0 {
          occupied += 1
          place += 1
          continue
        }
        base = place - first.byte - 1
        var fits = true
        for label in labels where nodes[base + label.byte + 1].check >= 0 {
          fits = false
          break
        }
        if fits { break search }
        place += 1
        if labels.count > 1 { occupied += place - start > 4096 ? 1 : 0 }
      }
      if occupied * 20 >= (place - start + 1) * 19 { firstFree = max(firstFree, place) }
      if base + last.byte + 258 >= nodes.count {
        nodes.append(contentsOf: repeatElement(Node(), count: 512))
      }
      nodes[node].base = Int32(base)
      for label in labels {
        nodes[base + label.byte + 1].check = Int32(node)
        pending.append((base + label.byte + 1, label.low, label.high, depth + 1))
      }
      while firstFree < nodes.count, nodes[firstFree].check >= 0 { firstFree += 1 }
    }
    // A lookup never leaves the array: every base is followed by 257 nodes.
    nodes.append(contentsOf: repeatElement(Node(), count: 258))
  }

  /// The longest key that begins the text.
  @inline(__always)
  static func longestMatch(
    _ nodes: UnsafePointer<Node>, _ text: UnsafePointer<UInt8>, _ count: Int
  ) -> (value: Int32, length: Int) {
    var best: (value: Int32, length: Int) = (-1, 0)
    forEachMatch(nodes, text, count) { best = ($0, $1) }
    return best
  }

  /// Calls `body` for every key that begins the text, shortest first.
  @inline(__always)
  static func forEachMatch(
    _ nodes: UnsafePointer<Node>, _ text: UnsafePointer<UInt8>, _ count: Int,
    _ body: (_ value: Int32, _ length: Int) -> Void
  ) {
    var node: Int32 = 0
    var base = nodes[0].base
    var position = 0
    while position < count {
      let child = base &+ Int32(text[position]) &+ 1
      let entry = nodes[Int(child)]
      if entry.check != node { break }
      node = child
      base = entry.base
      position += 1
      if entry.value >= 0 { body(entry.value, position) }
    }
  }
}
