import GyreCPU
import Testing

@testable import GyreTensors

/// Gradients of tables by rows are, bit for bit, the dense ones.
@Suite struct GradientRowsTests {
  private let vocabulary = 300
  private let width = 24

  private func tensor(_ name: String, _ shape: Shape, on device: any Device) -> Tensor {
    Tensor(
      CounterGenerator(seed: 7, name: name).normals(shape.elementCount), shape: shape, on: device)
  }

  private func tokens(_ name: String, on device: any Device) -> Tensor {
    let generator = CounterGenerator(seed: 8, name: name)
    return Tensor(
      (0..<40).map { Int32(generator.integer(UInt64($0), below: 30) * 10) }, shape: [2, 20],
      on: device)
  }

  @Test(arguments: [false, true]) func accumulatedLossesGiveTheSumsOfDenseGradients(
    isTied: Bool
  ) throws {
    let device = try CPUDevice()
    #expect(device.hasKernel(for: RowsAdded()))
    let table = tensor("table", [vocabulary, width], on: device)
    var sums = GradientSums(count: 1)
    var expected: Tensor?
    for part in 0..<3 {
      let ids = tokens("\(part)", on: device)
      let (c, d) = (
        tensor("c\(part)", [2, 20, width], on: device),
        tensor("d\(part)", [vocabulary, width], on: device)
      )
      let tape = Tape()
      tape.watch([table])
      let loss = tape.record {
        let looked = (table.rows(ids) * c).sum()
        return isTied ? looked + (table * d).sum() : looked
      }
      tape.gradients(of: loss, for: [table], addingTo: &sums)
      let rows = apply(EmbeddingLookup.Backward(vocabulary: vocabulary), [c, ids])[0]
      let gradient = isTied ? d + rows : rows
      expected = expected.map { $0 + gradient } ?? gradient
    }
    #expect(try sums.tensors[0]?.floats() == expected?.floats())
  }

  /// A sum that somebody else may have is not written into.
  @Test func sharedGradientsStayAsTheyAre() throws {
    let device = try CPUDevice()
    let (a, b) = (tensor("a", [5, 3], on: device), tensor("b", [5, 3], on: device))
    let c = tensor("c", [5, 3], on: device)
    var sums = GradientSums(count: 2)
    for _ in 0..<3 {
      let tape = Tape()
      tape.watch([a, b])
      let loss = tape.record { ((a + b) * c).sum() }
      tape.gradients(of: loss, for: [a, b], addingTo: &sums)
    }
    let expected = try (c + c + c).floats()
    #expect(try sums.tensors[0]?.floats() == expected)
    #expect(try sums.tensors[1]?.floats() == expected)
  }
}
