/// A derived expression as code for kernels: groups of point-wise instructions over one space, and
/// products between them.
///
/// A value lives in a *tile* (all units of a few rows) where products or other groups need it, and
/// in a *slot* (a strip of a tile) otherwise.
public struct CellCode: Sendable {
  public enum Action: Sendable, Hashable {
    /// A node's operation.
    case compute(CellOperation)
    /// Reads array `index`, writes array `index`, copies, adds to a tile.
    case load, store, copy, accumulate
  }
  public struct Instruction: Sendable, Hashable {
    public var action: Action
    /// Places: a slot's number, or ~ of a tile's number.
    public var target = 0
    public var a = 0
    public var b = 0
    /// Array or matrix.
    public var index = 0
    public var constant = 0.0
  }
  public struct Group: Sendable, Hashable {
    public var space: Int
    public var first: Int
    public var count: Int
  }
  public private(set) var instructions: [Instruction] = []
  public private(set) var groups: [Group] = []
  public private(set) var slots = 0
  /// The space of every tile.
  public private(set) var tileSpaces: [Int]

  /// What becomes of a node's value.
  enum Root {
    case tile(Int)
    case store(Int)
    case accumulate(Int)
  }

  /// - Parameters:
  ///   - tileSpaces: spaces of the tiles that leaves and roots name.
  ///   - tiles: tiles in which leaves are found.
  ///   - loads: arrays from which other leaves are read.
  init(
    _ graph: CellGraph, tileSpaces: [Int], tiles: [Int: Int], loads: [Int: Int],
    roots: [(node: Int, root: Root)]
  ) {
    self.tileSpaces = tileSpaces
    let nodes = graph.nodes
    let order = graph.needed(by: roots.map(\.node))
    var level = [Int](repeating: 0, count: nodes.count)
    var users = [Set<Int>](repeating: [], count: nodes.count)
    for i in order {
      let n = nodes[i]
      let operands = [n.a, n.b].filter { $0 >= 0 }
      level[i] = (operands.map { level[$0] }.max() ?? 0) + (n.operation.isProduct ? 1 : 0)
      for operand in operands {
        users[operand].insert(level[i] - (n.operation.isProduct ? 1 : 0))
      }
    }
    // Leaves that are read belong where they are first needed.
    for i in order where nodes[i].operation.isLeaf && tiles[i] == nil {
      level[i] = users[i].min() ?? 0
    }

    var place: [Int: Int] = tiles.mapValues { ~$0 }
    var isTile = Set(tiles.keys)
    func makeTile(_ i: Int) {
      guard !isTile.contains(i) else { return }
      isTile.insert(i)
      place[i] = ~self.tileSpaces.count
      self.tileSpaces.append(nodes[i].space)
    }
    for (i, root) in roots {
      if case .tile(let tile) = root, !isTile.contains(i), !nodes[i].operation.isLeaf {
        isTile.insert(i)
        place[i] = ~tile
      }
    }
    for i in order {
      if nodes[i].operation.isProduct {
        makeTile(i)
        makeTile(nodes[i].a)
      } else if users[i].contains(where: { $0 != level[i] }) {
        makeTile(i)
      }
    }

    for current in 0...(order.map { level[$0] }.max() ?? 0) {
      for space in Set(order.map { nodes[$0].space }).sorted() {
        emitGroup(
          graph,
          order.filter {
            level[$0] == current && nodes[$0].space == space && !nodes[$0].operation.isProduct
              && tiles[$0] == nil
          },
          roots.filter { level[$0.node] == current && nodes[$0.node].space == space },
          space: space, isTile: isTile, loads: loads, &place)
      }
      for i in order where nodes[i].operation.isProduct && level[i] == current + 1 {
        groups.append(Group(space: nodes[i].space, first: instructions.count, count: 1))
        instructions.append(
          Instruction(
            action: .compute(nodes[i].operation), target: place[i] ?? 0,
            a: place[nodes[i].a] ?? 0, index: nodes[i].index))
      }
    }
  }

  private mutating func emitGroup(
    _ graph: CellGraph, _ members: [Int], _ roots: [(node: Int, root: Root)], space: Int,
    isTile: Set<Int>, loads: [Int: Int], _ place: inout [Int: Int]
  ) {
    guard !members.isEmpty || !roots.isEmpty else { return }
    let nodes = graph.nodes
    let first = instructions.count
    var uses: [Int: Int] = [:]
    for i in members {
      for operand in [nodes[i].a, nodes[i].b] where operand >= 0 { uses[operand, default: 0] += 1 }
    }
    var byNode: [Int: [Root]] = [:]
    for (i, root) in roots {
      byNode[i, default: []].append(root)
      uses[i, default: 0] += 1
    }
    var free: [Int] = []
    func release(_ i: Int) {
      uses[i, default: 0] -= 1
      if uses[i] == 0, !isTile.contains(i), let p = place[i] { free.append(p) }
    }
    func finish(_ i: Int) {
      for root in byNode[i] ?? [] {
        let from = place[i] ?? 0
        switch root {
        case .tile(let tile):
          if from != ~tile {
            instructions.append(Instruction(action: .copy, target: ~tile, a: from))
          }
        case .store(let array):
          instructions.append(Instruction(action: .store, a: from, index: array))
        case .accumulate(let tile):
          instructions.append(Instruction(action: .accumulate, target: ~tile, a: from))
        }
        release(i)
      }
    }
    for i in members {
      let n = nodes[i]
      let operands = [n.a, n.b].filter { $0 >= 0 }
      let places = operands.map { place[$0] ?? 0 }
      // The result may take the place of an operand that is not used again.
      for operand in operands { release(operand) }
      if !isTile.contains(i) {
        if let slot = free.popLast() {
          place[i] = slot
        } else {
          place[i] = slots
          slots += 1
        }
      }
      var made = Instruction(
        action: .compute(n.operation), target: place[i] ?? 0, a: places.first ?? 0,
        b: places.count > 1 ? places[1] : 0, index: max(n.index, 0), constant: n.constant)
      if n.operation.isLeaf, n.operation != .constant {
        made.action = .load
        made.index = loads[i] ?? 0
      }
      instructions.append(made)
      finish(i)
    }
    // Values that were there before this group: leaves in tiles and products.
    for i in Set(roots.map(\.node)).subtracting(members).sorted() { finish(i) }
    groups.append(Group(space: space, first: first, count: instructions.count - first))
  }
}
