import GyreTensors

/// Something whose parameters can be scored.
public protocol EvolutionTask: AnyObject {
  var parameters: [Parameter] { get }
  /// Rows of the batch for each member.
  var rowsPerMember: Int { get }
  /// Scores of some members under `Perturbation.current`, whose rows are `rowsPerMember` of each member in
  /// order: for each member one a question, larger is better.
  ///
  /// - Returns: the scores, and the tokens or steps that were spent.
  func scores(members: Range<Int>, generation: Int) throws -> (scores: [[Double]], tokens: Int)
  /// A score of the model itself on what it is not trained on; bits a byte where `isBitsPerByte`.
  func evaluate() throws -> Double?
  var isBitsPerByte: Bool { get }
  /// Seconds that other programs took since this was last asked.
  func takeScoringSeconds() -> Double
}

extension EvolutionTask {
  public func takeScoringSeconds() -> Double { 0 }
}
