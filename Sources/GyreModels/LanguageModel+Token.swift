import GyreLayers
import GyreMixers
import GyreRecurrence
import GyreTensors

extension LanguageModel {
  /// One token of the model as a program that goes on from a copy of `state`, and the vector of the
  /// logits; nil where a layer has no such form.
  ///
  /// The program computes what `hidden` and `logits` do for one token a sequence.
  public func tokenProgram(
    from state: ModelState
  ) -> (program: TokenProgram, logits: TokenProgram.Vector)? {
    let c = configuration
    guard c.residual == .preNorm, finalAttention == nil else { return nil }
    var program = TokenProgram(batch: state.batch)
    let stream = program.vector(c.width)
    program.phases.append(
      .embedding(
        .init(
          table: embedding.value, factor: c.embeddingScale, norm: embeddingNorm?.token(),
          output: stream)))
    var next = 0
    for block in blocks {
      for sublayer in block.sublayers {
        let own = state.layers[next].owned(on: device)
        next += 1
        let (alpha, beta) = sublayer.factors
        let input = TokenInput(
          operand: .init(stream, c.width, norm: sublayer.norm.token()),
          finish: .add(stream: alpha, beta))
        guard sublayer.map.appendToken(input, to: &program, state: own) else { return nil }
      }
    }
    let logits = program.vector(c.vocabulary)
    program.phases.append(
      .products(
        .init(
          [.init(stream, c.width, norm: finalNorm.token())],
          [
            .init(
              headWeight.value, to: logits, c.logitCap.map { .capped($0) } ?? .set(nil))
          ])))
    return (program, logits)
  }
}
