import GyreTokenizers
import GyreTraining

/// What `gyre train --tokenizer` names: a file, a folder, or pieces that are learnt from the text.
enum TokenizerChoice {
  static let learnt = "bpe:"
  /// Bytes and at least one merge; beyond a million, training would only learn single words.
  static let sizes = 257...1_000_000

  static func make(_ name: String?, corpus: Corpus) throws -> any Tokenizer {
    guard let name else { return ByteTokenizer() }
    guard name.hasPrefix(learnt) else { return try TokenizerFile.load(path: name) }
    guard let size = Int(name.dropFirst(learnt.count)), sizes.contains(size) else {
      throw Failure(
        "--tokenizer \(name): \(learnt)N learns N pieces; N must be from \(sizes.lowerBound) to "
          + "\(sizes.upperBound)")
    }
    var trainer = BytePairTrainer(vocabularySize: size)
    try corpus.forEachTrainingPiece { trainer.feedLines(String(decoding: $0, as: UTF8.self)) }
    return try trainer.train()
  }
}
