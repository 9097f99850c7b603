import GyreTokenizers
import GyreTraining
import Testing

@testable import gyre

struct TokenizerChoiceTests {
  private let corpus = Corpus(
    train: [Array("the cat and the hat and the bat\nthe rat\n".utf8)], validation: [], source: "")

  @Test func learnsPiecesOfTheText() throws {
    let tokenizer = try TokenizerChoice.make("bpe:262", corpus: corpus)
    #expect(tokenizer.vocabularySize == 262)
    var tokens: [TokenID] = []
    tokenizer.encode("the hat", into: &tokens)
    #expect(tokens.count < 7)
    #expect(tokenizer.decode(tokens, skippingSpecialTokens: false) == "the hat")
  }

  @Test func bytesByDefault() throws {
    #expect(try TokenizerChoice.make(nil, corpus: corpus).vocabularySize == 256)
  }

  @Test(arguments: ["bpe:", "bpe:256", "bpe:-1", "bpe:1e4", "bpe:99999999999999999999"])
  func sizesAreChecked(_ name: String) {
    #expect(throws: Failure.self) { try TokenizerChoice.make(name, corpus: corpus) }
  }
}
