import GyreTensors
import Testing

@Suite struct TapeTests {
  let device = ReferenceDevice(poisons: true)

  func tensor(_ values: [Float]) -> Tensor { Tensor(values, shape: [values.count], on: device) }

  @Test func gradientsOfAnExpression() throws {
    let (a, b) = (tensor([1, 2, 3]), tensor([4, 5, 6]))
    let tape = Tape()
    tape.watch([a, b])
    let y = tape.record { (a * b + a * a).sum() }
    let g = tape.gradients(of: y, for: [a, b])
    #expect(try g[0]?.floats() == [6, 9, 12])
    #expect(try g[1]?.floats() == [1, 2, 3])
  }

  @Test func aUseCountsAsOftenAsItHappens() throws {
    let a = tensor([2])
    let tape = Tape()
    tape.watch([a])
    let y = tape.record { a + a + a + a }
    #expect(try tape.gradients(of: y, for: [a])[0]?.floats() == [4])
  }

  /// Both terms of a sum get its gradient; what is added to one must not reach the other.
  @Test func gradientsOfTheTermsOfASumAreApart() throws {
    let (a, b) = (tensor([2]), tensor([3]))
    let tape = Tape()
    tape.watch([a, b])
    let y = tape.record {
      // b's gradient waits while a's, through x, is added to.
      let x = a * a
      let sum = (x * x) * 0.5 + (b + x)
      return sum * 2 + sum * sum
    }
    // x = 4, sum = 15: dy/dsum = 32, dsum/da = (x + 1) 2a = 20.
    let g = tape.gradients(of: y, for: [a, b])
    #expect(try g[0]?.floats() == [640])
    #expect(try g[1]?.floats() == [32])
  }

  @Test func nothingIsRecordedWithoutATapeOrVariables() throws {
    let (a, b) = (tensor([1]), tensor([2]))
    let tape = Tape()
    tape.watch([a])
    let outside = a * a
    let y = tape.record { b * b + outside }
    #expect(tape.gradients(of: y, for: [a, b]).allSatisfy { $0 == nil })
  }

  @Test func detachedValuesCutTheTape() throws {
    let a = tensor([3])
    let tape = Tape()
    tape.watch([a])
    let y = tape.record { a * a.detached() }
    #expect(try tape.gradients(of: y, for: [a])[0]?.floats() == [3])
  }

  @Test func rematerializedGradientsAreTheSame() throws {
    let a = tensor([0.5, -1, 2])
    func gradient(_ rematerializes: Bool) throws -> [Float]? {
      let tape = Tape()
      tape.watch([a])
      let y = tape.record {
        let body: @Sendable ([Tensor]) -> [Tensor] = { [($0[0] * $0[0]).tanh() * a] }
        return rematerializes ? Tape.rematerialize([a], body)[0] : body([a])[0]
      }
      return try tape.gradients(of: y, for: [a])[0]?.floats()
    }
    #expect(try gradient(true) == gradient(false))
  }

  @Test func aTapeBindsToItsBodyOnly() {
    let tape = Tape()
    tape.record { #expect(Tape.current === tape) }
    #expect(Tape.current == nil)
  }
}

@Suite struct ShapeTests {
  @Test func extents() {
    let s: Shape = [2, 3, 4]
    #expect(s.elementCount == 24 && s.rank == 3 && s.last == 4 && s.rowCount == 6)
    #expect(s[-1] == 4 && s[0] == 2)
    #expect(Shape([]).elementCount == 1 && Shape([]).last == 1)
    #expect(Shape([0, 3]).elementCount == 0)
    #expect("\(s)" == "[2, 3, 4]")
  }

  @Test func broadcasting() throws {
    let device = ReferenceDevice(poisons: true)
    let column = Tensor([Float(1), 2], shape: [2, 1], on: device)
    let row = Tensor([Float(10), 20, 30], shape: [3], on: device)
    let sum = column + row
    #expect(sum.shape == [2, 3])
    #expect(try sum.floats() == [11, 21, 31, 12, 22, 32])
    #expect(try sum.summed(to: [2, 1]).floats() == [63, 66])
    #expect(try sum.summed(to: [3]).floats() == [23, 43, 63])
  }
}
