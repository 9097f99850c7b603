import CGyreCUDASources
import GyreRecurrence
import GyreTensors
import Testing

@testable import GyreCUDA

/// What the token kernel is told, without a card.
@Suite struct TokenTablesTests {
  private let device = NullDevice()

  private func tensor(_ shape: Shape, _ type: DType = .bfloat16) -> Tensor {
    Tensor(emptyWith: TensorSpec(shape, type), on: device)
  }

  private func tables(
    _ program: TokenProgram, shared: Int = 232_448, blocks: Int = 132
  ) -> TokenTables? {
    TokenTables(
      program, isFloat: false, blocks: blocks, shared: shared,
      places: .init(
        vector: {
          .init(data: UInt64(4096 * ($0.index + 1) + 8 * $0.offset), stride: 64, phase: -1)
        },
        array: { .init(data: 65_536, dtype: $0.dtype == .float32 ? 0 : 1, stride: 0) },
        floats: { _ in 1 << 16 }, weight: { _ in 1 << 20 }, caches: { _ in (1, 2, 1024) },
        parts: (
          .init(data: 1 << 30, stride: 8192, phase: -1),
          .init(data: 2 << 30, stride: 8192, phase: -1),
          .init(data: 3 << 30, stride: 8192, phase: -1)
        ),
        kept: .init()))
  }

  /// Embedding, a gated block and a head.
  private func program(
    batch: Int = 1, width: Int = 512, hidden: Int = 1376, vocabulary: Int
  ) -> TokenProgram {
    var p = TokenProgram(batch: batch)
    let stream = p.vector(width)
    p.phases.append(
      .embedding(
        .init(table: tensor([vocabulary, width]), factor: 1, norm: nil, output: stream)))
    let inner = p.scratch("hidden", hidden)
    p.phases.append(
      .products(
        .init(
          [.init(stream, width, norm: .init(epsilon: 1e-6))],
          [.init(tensor([2 * hidden, width]), to: inner, .gated(.silu))])))
    p.phases.append(
      .products(
        .init(
          [.init(inner, hidden)], [.init(tensor([width, hidden]), to: stream, .add(stream: 1, 1))]))
    )
    p.phases.append(
      .products(
        .init(
          [.init(stream, width, norm: .init(epsilon: 1e-6))],
          [.init(tensor([vocabulary, width]), to: p.vector(vocabulary))])))
    return p
  }

  @Test func phasesAndStream() throws {
    let t = try #require(tables(program(vocabulary: 32_000)))
    #expect(t.phases.map(\.makes) == [0, 1, 1, 1])
    // What a phase waits for, but for one in sixteen; nobody counts the embedding.
    #expect(t.phases.map(\.awaited) == [0, 0, 1, 2])
    #expect(t.phases.map(\.enough) == [0, 0, 1290, 480])
    #expect(t.phases.map { $0.operand.0.x.phase } == [0, 0, 1, 2])
    #expect(t.phases[2].product.0.old.phase == 0)
    #expect(t.phases.map { $0.product.0.y.phase } == [0, 1, 2, -1])
    #expect(t.blocks == 132)
    #expect(t.entries.map(\.rows) == [1376, 512, 32_000])
    #expect(t.entries.map(\.slice) == [512, 1376, 512])
    #expect(t.entries.map(\.paired) == [1, 0, 0])
    #expect(t.sharedBytes <= 232_448)
  }

  @Test func longProductsAreCut() throws {
    let t = try #require(tables(program(batch: 3, vocabulary: 200_000)))
    #expect(t.variant & 2 != 0)
    let head = t.phases.dropFirst(3)
    #expect(head.count > 1)
    #expect(head.map(\.makes) == [1] + head.dropFirst().map { _ in 0 })
    #expect(t.entries.dropFirst(2).reduce(0) { $0 + Int($1.rows) } == 200_000)
    for entry in t.entries {
      let rows = (Int(entry.total) + 131) / 132 * (entry.paired != 0 ? 2 : 1)
      #expect(rows * (8 * 4 + 4) <= 2 * 4096)
    }
  }

  @Test func longRowsAreCut() throws {
    let t = try #require(tables(program(hidden: 5472, vocabulary: 64)))
    // Three parts of a row of 10,944 bytes, of whole 128; no more blocks than the head has rows.
    #expect(t.entries.map(\.slice) == [512, 1856, 512])
    #expect(t.blocks == 64)
  }

  @Test func whatDoesNotFitIsLeft() {
    #expect(tables(program(vocabulary: 256), shared: 60_000) == nil)
    #expect(tables(program(batch: 5, vocabulary: 256)) == nil)
    // 16 bytes of a row at a time.
    #expect(tables(program(width: 500, vocabulary: 256)) == nil)
  }

  /// Embedding, streams, what `step` makes of them, and a product of what `operand` takes.
  private func program(
    width: Int = 512, streams count: Int,
    step: (inout TokenProgram, TokenProgram.Vector) -> TokenProgram.Phase,
    operand: (inout TokenProgram, TokenProgram.Vector) -> TokenProgram.Operand
  ) -> TokenProgram {
    var p = TokenProgram(batch: 1)
    let stream = p.vector(width)
    let streams = p.scratch("streams", count)
    p.phases.append(
      .embedding(.init(table: tensor([256, width]), factor: 1, norm: nil, output: stream)))
    p.phases.append(
      .products(.init([.init(stream, width)], [.init(tensor([count, width]), to: streams)])))
    p.phases.append(step(&p, streams))
    let taken = operand(&p, streams)
    p.phases.append(
      .products(
        .init([taken], [.init(tensor([width, taken.size]), to: stream, .add(stream: 1, 1))])))
    return p
  }

  @Test func partsOfAnAttentionAreJoinedByItsBlocks() throws {
    var made: TokenProgram.Attention?
    let p = program(
      streams: 3 * 512,
      step: { _, streams in
        made = .init(
          heads: 8, keyHeads: 8, size: 64, window: nil, scale: 0.125, rotated: 64,
          rotaryBase: 10_000, interleaved: false, streams: streams, q: 0, k: 512, v: 1024, index: 0)
        return .attention(made!)
      }, operand: { _, streams in .init(streams, 512, attention: made) })
    let t = try #require(tables(p))
    #expect(t.phases[2].attention.splits == 16)
    #expect(t.phases[2].attention.joined.phase == 2)
    // The next phase copies what was joined, and waits for that alone.
    #expect(t.phases[3].operand.0.kind == Int32(GYRE_TOKEN_COPY))
    #expect(t.phases[3].operand.0.x.data == 3 << 30)
    #expect(t.phases[3].operand.0.x.phase == 2)
    #expect((t.phases[3].awaited, t.phases[3].enough) == (2, 480))
  }

  /// A matrix step and a norm of its outputs with a gate.
  private func gatedState(isBefore: Bool) -> TokenProgram {
    let state = tensor([1, 8, 64, 64], .float32)
    return program(
      streams: 1024 + 128 + 8,
      step: { p, streams in
        var step = TokenProgram.MatrixStep(
          .mamba2(low: 0, high: nil), heads: 8, keyHeads: 1, keySize: 64, valueSize: 64,
          streams: streams, q: 512, k: 576, v: 0, scale: 1, epsilon: 0, state: state,
          output: p.scratch("y", 512))
        step.gate = streams.advanced(by: 1152)
        step.logRate = tensor([8], .float32)
        return .matrix(step)
      },
      operand: { p, streams in
        var norm = TokenProgram.Norm(epsilon: 1e-6)
        norm.gate = (streams.advanced(by: 640), .silu, isBefore ? .before : .after)
        return .init(p.scratch("y", 512), 512, norm: norm)
      })
  }

  @Test(arguments: [true, false])
  func gateBeforeTheNormGoesIntoTheState(isBefore: Bool) throws {
    var p = gatedState(isBefore: isBefore)
    let t = try #require(tables(p))
    let (matrix, operand) = (t.phases[2].matrix, t.phases[3].operand.0)
    #expect((matrix.outer.data != 0) == isBefore)
    #expect(operand.gate == (isBefore ? 0 : 1))
    if isBefore {
      #expect(matrix.outer_function == Int32(Unary.Kind.silu.rawValue))
      #expect(matrix.outer.phase == 1)
      #expect(operand.z.data == 0)
    }
    // Nobody else may read what is gated.
    let y = p.scratch("y", 512)
    p.phases.append(
      .products(.init([.init(y, 512)], [.init(tensor([64, 512]), to: p.vector(64))])))
    #expect((tables(p) == nil) == isBefore)
  }
}
