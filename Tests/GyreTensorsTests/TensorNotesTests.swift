import GyreTensors
import Testing

/// What tensors know of their origin makes things faster and changes no value.
@Suite struct TensorNotesTests {
  private let device = ReferenceDevice(poisons: true)

  private func tensor(_ first: Float, _ count: Int) -> Tensor {
    Tensor((0..<count * 2).map { first + Float($0) }, shape: [1, count, 2], on: device)
  }

  @Test func growingIsConcatenating() throws {
    var cache = tensor(0, 3)
    var expected = try cache.floats()
    for i in 0..<5000 {
      let next = tensor(Float(100 * i), 1)
      cache = cache.growing(by: next)
      expected += try next.floats()
    }
    #expect(cache.shape == [1, 5003, 2])
    #expect(try cache.floats() == expected)
  }

  /// Copies of a cache fork: neither sees what the other appends.
  @Test func growingKeepsValues() throws {
    let trunk = tensor(0, 3).growing(by: tensor(10, 1))
    let left = trunk.growing(by: tensor(20, 2))
    let right = trunk.growing(by: tensor(30, 1))
    let longer = left.growing(by: tensor(40, 1))
    #expect(try trunk.floats() == [0, 1, 2, 3, 4, 5, 10, 11])
    #expect(try left.floats() == [0, 1, 2, 3, 4, 5, 10, 11, 20, 21, 22, 23])
    #expect(try right.floats() == [0, 1, 2, 3, 4, 5, 10, 11, 30, 31])
    #expect(try longer.floats() == [0, 1, 2, 3, 4, 5, 10, 11, 20, 21, 22, 23, 40, 41])
  }

  /// A window slides over its storage; what fell out of it is not seen, nor written over.
  @Test func suffixesOfGrowingTensors() throws {
    var window = tensor(0, 4)
    var all = try window.floats()
    var earlier: [(Tensor, [Float])] = []
    for i in 1..<200 {
      let next = tensor(Float(10 * i), 1)
      window = window.growing(by: next).suffix(4)
      all += try next.floats()
      earlier.append((window, Array(all.suffix(8))))
    }
    for (kept, values) in earlier { #expect(try kept.floats() == values) }
  }

  @Test func growingUnderATapeIsRecorded() throws {
    let (a, b) = (tensor(1, 2), tensor(5, 1))
    let tape = Tape()
    tape.watch([a, b])
    let y = tape.record { a.growing(by: b).sum() }
    let gradients = tape.gradients(of: y, for: [a, b])
    #expect(try gradients[0]?.floats() == [1, 1, 1, 1])
    #expect(try gradients[1]?.floats() == [1, 1])
  }

  /// f(E[tokens]) is made as f(E)[tokens] where the table is small, with the same values and
  /// gradients.
  @Test func mapsOfLookedUpRows() throws {
    let table = Tensor((0..<12).map { Float($0) * 0.25 - 1 }, shape: [3, 4], on: device)
    let weight = Tensor((0..<8).map { Float($0) * 0.125 }, shape: [2, 4], on: device)
    let scale = Tensor([1, 2, 0.5, 1] as [Float], shape: [4], on: device)
    let tokens = Tensor([2, 0, 1, 2, 2, 0] as [Int32], shape: [2, 3], on: device)
    func run(_ lookup: (Tensor) -> Tensor) throws -> [[Float]] {
      let variables = [table, weight, scale]
      let tape = Tape()
      tape.watch(variables)
      let (y, loss) = tape.record {
        let y = lookup(table).rmsNormalized(weight: scale, epsilon: 1e-5).linear(weight)
        return (y, (y * y).sum())
      }
      #expect(y.shape == [2, 3, 2])
      let found = tape.gradients(of: loss, for: variables)
      return try [y.floats()] + found.map { try $0?.floats() ?? [] }
    }
    let fast = try run { $0.rows(tokens) }
    let plain = try run { $0.rows(tokens).reshaped([6, 4]).reshaped([2, 3, 4]) }
    for (a, b) in zip(fast, plain) {
      #expect(a.count == b.count)
      for (x, y) in zip(a, b) { #expect(abs(x - y) <= 1e-5 * max(1, abs(y))) }
    }
  }
}
