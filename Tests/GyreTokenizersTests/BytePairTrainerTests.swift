import Testing

@testable import GyreTokenizers

@Suite struct BytePairTrainerTests {
  @Test func mergesEqualThePublicTrainer() throws {
    let fixture = try Fixtures.json("training")
    let text = try fixture.required("text").string()
    var trainer = BytePairTrainer(
      vocabularySize: 900, minimumFrequency: 2, specialTokens: ["<|endoftext|>"])
    trainer.feedLines(text)
    let tokenizer = try trainer.train()
    let saved = try JSONReader.parse(tokenizer.serialized().bytes, file: "trained").root
    let ours = try saved.required("model").required("merges").elements().map {
      try $0.elements().map { try $0.string() }
    }
    let theirs = try fixture.required("merges").elements().map {
      try $0.elements().map { try $0.string() }
    }
    #expect(ours == theirs)
    #expect(tokenizer.decode(tokenizer.encode(text)) == text)
    #expect(tokenizer.vocabularySize == 900)
    #expect(tokenizer.specialTokens.end == 0)
  }

  @Test func littleTextGivesASmallVocabulary() throws {
    let empty = try BytePairTrainer(vocabularySize: 1000).train()
    #expect(empty.vocabularySize == 256)
    #expect(empty.decode(empty.encode("né\u{0}w\n")) == "né\u{0}w\n")
    var trainer = BytePairTrainer(
      vocabularySize: 300, specialTokens: ["a", "\"\\\n"], includesAllBytes: false)
    trainer.feed("abab abab aaaa")
    let small = try trainer.train()
    #expect(small.decode(small.encode("abab aaaa")) == "abab aaaa")
  }
}
