import FoundationEssentials
import GyreTokenizers

/// A task's words as a tokenizer: `tokenizer.json` with one token a word, words between spaces.
public enum TaskTokenizer {
  /// - Throws: `TokenizerError` when the file cannot be read back, which would be a mistake here.
  public static func make(_ task: any SequenceTask) throws -> any Tokenizer {
    let numbers = Dictionary(
      uniqueKeysWithValues: task.vocabulary.enumerated().map { ($1, $0) })
    let file = File(model: .init(vocab: numbers, unknown: task.vocabulary[0]))
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    return try TokenizerFile.parse(Array(try encoder.encode(file)), file: "tokenizer.json")
  }

  private struct File: Encodable {
    struct Model: Encodable {
      var type = "WordLevel"
      var vocab: [String: Int]
      var unknown: String
      enum CodingKeys: String, CodingKey {
        case type, vocab
        case unknown = "unk_token"
      }
    }
    struct Step: Encodable { var type: String }
    struct Decoder: Encodable {
      // Puts a space between tokens.
      var type = "WordPiece"
      var prefix = "##"
      var cleanup = false
    }
    var version = "1.0"
    var splitter = Step(type: "WhitespaceSplit")
    var model: Model
    var decoder = Decoder()
    enum CodingKeys: String, CodingKey {
      case version, model, decoder
      case splitter = "pre_tokenizer"
    }
  }
}
