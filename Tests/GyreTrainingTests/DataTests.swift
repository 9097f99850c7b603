import FoundationEssentials
import GyreCheckpoints
import GyreTensors
import GyreTokenizers
import Testing

@testable import GyreTraining

@Suite struct ShardTests {
  @Test func tokensComeBack() throws {
    let run = try TemporaryRun()
    let path = run.folder.path + ".shard"
    defer { try? FileManager.default.removeItem(atPath: path) }
    try TokenShard.write([text(50), [], text(20)], tokenizer: ByteTokenizer(), to: path)
    let shard = try TokenShard(path: path)
    #expect(shard.count == 70 && shard.documents == [0, 50, 50] && shard.byteCount == 70)
    #expect(shard.tokens(0..<70) == (text(50) + text(20)).map(Int32.init))
  }

  /// Every truncation and thousands of flipped bytes give an error or tokens inside the vocabulary.
  @Test func damageIsFound() throws {
    let run = try TemporaryRun()
    let path = run.folder.path + ".shard"
    defer { try? FileManager.default.removeItem(atPath: path) }
    try TokenShard.write([text(30), text(9)], tokenizer: ByteTokenizer(), to: path)
    let whole = try MappedFile(path: path).withUnsafeBytes { Array($0) }
    for count in 0..<whole.count {
      try AtomicFile.write(Array(whole[..<count]), to: path)
      #expect(throws: TrainingError.self) { try TokenShard(path: path) }
    }
    let generator = CounterGenerator(seed: 3, name: "damage")
    for i in 0..<600 {
      var bytes = whole
      let place = generator.integer(UInt64(2 * i), below: bytes.count)
      bytes[place] = UInt8(truncatingIfNeeded: generator.word(UInt64(2 * i + 1)))
      try AtomicFile.write(bytes, to: path)
      guard let shard = try? TokenShard(path: path) else { continue }
      #expect(shard.tokens(0..<shard.count).allSatisfy { $0 >= 0 && $0 < shard.vocabulary })
    }
  }
}

@Suite struct BatchTests {
  private func shard(_ documents: [[UInt8]], _ body: (TokenShard) throws -> Void) throws {
    let run = try TemporaryRun()
    let path = run.folder.path + ".shard"
    defer { try? FileManager.default.removeItem(atPath: path) }
    try TokenShard.write(documents, tokenizer: ByteTokenizer(), to: path)
    try body(TokenShard(path: path))
  }

  @Test func streamsGoOnWhereTheyEnded() throws {
    try shard([(0..<200).map { UInt8($0) }]) { shard in
      let source = try StreamBatches(shard, batch: 2, length: 10, seed: 1)
      let (a, b) = (source.batch(0), source.batch(1))
      #expect(a.startsAfresh && !b.startsAfresh && a.reset == nil)
      #expect(a.targets[..<9] == a.tokens[1..<10])
      #expect(b.tokens[0] == a.targets[9] && b.tokens[10] == a.targets[19])
    }
  }

  @Test func packedWindowsAreAPermutation() throws {
    try shard([(0..<201).map { UInt8($0) }]) { shard in
      let source = try PackedBatches(shard, batch: 5, length: 10, seed: 1)
      for epoch in 0..<2 {
        let starts = (0..<4).flatMap { n in
          let tokens = source.batch(epoch * 4 + n).tokens
          return (0..<5).map { tokens[$0 * 10] }
        }
        #expect(starts.sorted() == (0..<20).map { Int32($0 * 10) })
      }
      #expect(source.batch(0).tokens != source.batch(4).tokens)
    }
  }

  /// A document's first token resets the state and is no target of the one before.
  @Test func documentsAreSeparate() throws {
    try shard([text(15), text(15), text(15)]) { shard in
      let batch = try PackedBatches(shard, batch: 1, length: 44, seed: 0).batch(0)
      let reset = try #require(batch.reset)
      #expect(reset.indices.filter { reset[$0] != 0 } == [0, 15, 30])
      #expect(batch.targets.indices.filter { batch.targets[$0] < 0 } == [14, 29])
    }
  }

  @Test func shortTextIsAnError() throws {
    try shard([text(12)]) { shard in
      #expect(throws: TrainingError.self) { try StreamBatches(shard, batch: 4, length: 8, seed: 0) }
    }
  }
}

@Suite struct CorpusTests {
  /// Files and lines in pieces of any size give the shard of the texts in memory, byte for byte.
  @Test func filesAreTokenisedInPieces() throws {
    let run = try TemporaryRun()
    let folder = run.folder.path
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    let words = ["one ", "two\n", "three, ", "  four", "5é ", "日本\n", "six"]
    let generator = CounterGenerator(seed: 5, name: "words")
    let long = (0..<700).map { words[generator.integer(UInt64($0), below: words.count)] }.joined()
    try AtomicFile.write(long, to: folder + "/a.txt")
    let lines = [long, "a \"quoted\" line", ""].map {
      let escaped = $0.replacing("\"", with: "\\\"").replacing("\n", with: "\\n")
      return "{\"text\": \"\(escaped)\"}"
    }
    try AtomicFile.write(lines.joined(separator: "\n"), to: folder + "/b.jsonl")
    var trainer = BytePairTrainer(vocabularySize: 300)
    trainer.feedLines(long)
    let tokenizer = try trainer.train()
    let whole = try Corpus(paths: [folder])
    let texts = try whole.train.map { try $0.bytes() }
    #expect(texts[0] == Array(long.utf8) && texts.count == 2)
    try TokenShard.write(texts, tokenizer: tokenizer, to: folder + "/.whole")
    let read = { (name: String) in
      try MappedFile(path: folder + "/" + name).withUnsafeBytes { Array($0) }
    }
    for size in [1, 7, 64, 1000] {
      let reader = CorpusReader(pieceSize: size)
      let corpus = try Corpus(paths: [folder], reader)
      #expect(try corpus.train.map { try $0.bytes() } == texts)
      try TokenShard.write(corpus.train, tokenizer: tokenizer, to: folder + "/.pieces", reader)
      #expect(try read(".pieces") == read(".whole"), "pieces of \(size)")
    }
    var lineEnds = 0
    try whole.forEachTrainingPiece { lineEnds += $0.count(where: { $0 == 0x0A }) }
    #expect(lineEnds == texts.joined().count(where: { $0 == 0x0A }))
    #expect(try FileManager.default.contentsOfDirectory(atPath: folder).count == 4)
  }

  @Test func foldersAndLinesAreRead() throws {
    let run = try TemporaryRun()
    try FileManager.default.createDirectory(
      atPath: run.folder.path, withIntermediateDirectories: true)
    try AtomicFile.write(text(400), to: run.folder.path + "/b.txt")
    try AtomicFile.write(
      "{\"text\": \"first\"}\n{\"text\": \"second é\"}\n", to: run.folder.path + "/a.jsonl")
    let corpus = try Corpus(paths: [run.folder.path])
    #expect(try corpus.train[0].bytes() == Array("first".utf8))
    #expect(try corpus.train[1].bytes() == Array("second é".utf8))
    #expect((corpus.train + corpus.validation).reduce(0) { $0 + $1.byteCount } == 414)
    // The held-out end of the last document is 20 bytes of its file.
    #expect(try corpus.train[2].bytes() + corpus.validation[0].bytes() == text(400))
    try AtomicFile.write("{\"text\": 3}\n", to: run.folder.path + "/c.jsonl")
    #expect(throws: TrainingError.self) { try Corpus(paths: [run.folder.path]) }
    #expect(throws: TrainingError.self) { try Corpus(paths: [run.folder.path + "/none"]) }
  }
}

@Suite struct ScheduleTests {
  @Test func valuesAtTheCorners() {
    let linear = Schedule(.linear, steps: 11, warmupSteps: 2, finalFraction: 0.1)
    #expect(linear.factor(0) == 0.5 && linear.factor(1) == 1)
    #expect(abs(linear.factor(10) - 0.1) < 1e-12)
    let cosine = Schedule(.cosine, steps: 11, warmupSteps: 0)
    #expect(cosine.factor(0) == 1 && abs(cosine.factor(5) - 0.5) < 1e-12)
    #expect(abs(cosine.factor(10)) < 1e-12)
    let wsd = Schedule(.warmupStableDecay, steps: 20, warmupSteps: 4, decaySteps: 5)
    #expect(wsd.factor(14) == 1 && abs(wsd.factor(19)) < 1e-12)
    #expect(Schedule(.constant, steps: 5, warmupSteps: 0).factor(4) == 1)
  }

  @Test func configurationsRoundTripAndAreChecked() throws {
    var c = TrainingConfiguration()
    c.clipNorm = nil
    c.spikeFactor = nil
    #expect(try TrainingConfiguration(json: Array(try c.json().utf8)) == c)
    for bad in ["{\"batch\": 0}", "{\"bach\": 1}", "{\"learning_rate\": \"x\"}", "[]", "{"] {
      #expect(throws: (any Error).self) { try TrainingConfiguration(json: Array(bad.utf8)) }
    }
  }
}

@Suite struct NGramTests {
  /// On a text that repeats, a long context leaves almost nothing to learn; order 1 is the entropy
  /// of the letters.
  @Test func repetitionIsLearned() {
    let tokens = (0..<3000).map { Int32($0 % 4) }
    let bits = NGramModel(tokens, vocabulary: 256).bits(Array(tokens[..<1000]))
    #expect(abs(bits[0] / 1000 - 2) < 0.02)
    #expect(bits[4] / 1000 < 0.1)
  }

  @Test func probabilitiesSumToOne() {
    let tokens = (0..<500).map { Int32(($0 * $0) % 7) }
    let model = NGramModel(tokens, vocabulary: 8)
    var total = 0.0
    for next in 0..<8 {
      let context: [Int32] = [1, 4, 2, 2]
      let bits = model.bits(context + [Int32(next)])[4] - model.bits(context)[4]
      total += Functions.exp(-bits * Functions.log(2))
    }
    #expect(abs(total - 1) < 1e-9)
  }
}
