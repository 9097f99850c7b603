import GyreModels
import GyreRecurrence
import GyreTensors

func logarithm(_ x: Double) -> Double { Functions.log(x) }

/// How well a model predicts a text.
public struct Evaluation: Sendable, Codable, Equatable {
  public var bitsPerByte: Double
  /// e to the mean cross-entropy of a token.
  public var perplexity: Double
  public var tokens: Int
  public var bytes: Int

  enum CodingKeys: String, CodingKey {
    case bitsPerByte = "bits_per_byte"
    case perplexity, tokens, bytes
  }

  /// Where a model whose state has no limit begins anew when nothing else is known of it.
  public static let usualContext = 2048

  /// From bits of all tokens together.
  public init(bits: Double, tokens: Int, bytes: Int) {
    bitsPerByte = bits / Double(max(bytes, 1))
    perplexity = Functions.pow(2, bits / Double(max(tokens, 1)))
    self.tokens = tokens
    self.bytes = bytes
  }

  /// Scores a shard as one stream with carried state, in pieces of `length` tokens: constant memory and time
  /// a token.
  ///
  /// - Parameters:
  ///   - cache: mixes the model with the continuous cache pointer.
  ///   - context: tokens after which a model whose state has no limit (attention over everything) begins
  ///     anew: its cost a token grows with them, and few such models read further than they were trained to.
  public init(
    _ model: LanguageModel, _ shard: TokenShard, length: Int = 1024,
    precision: ComputePrecision = .float32, cache: NeuralCache? = nil,
    context: Int = Evaluation.usualContext
  ) throws {
    let context = model.hasUnboundedState ? max(context, 1) : Int.max
    var (state, seen) = (model.makeState(batch: 1), 0)
    var pointer = cache.map { CachePointer($0) }
    var (nats, counted, at) = (0.0, 0, 0)
    while at < shard.count - 1 {
      if seen == context { (state, seen) = (model.makeState(batch: 1), 0) }
      let n = min(length, shard.count - 1 - at, context - seen)
      let row = shard.tokens(at..<at + n + 1)
      let (device, shape) = (model.device, Shape([1, n]))
      let targets = Array(row.dropFirst())
      let (h, loss) = ComputePrecision.$current.withValue(precision) {
        let h = model.hidden(
          Tensor(Array(row.dropLast()), shape: shape, on: device), state: &state)
        return (h, model.crossEntropy(h, Tensor(targets, shape: shape, on: device)))
      }
      if pointer != nil {
        nats += try pointer?.mix(h, targets, nats: try loss.rows.doubles()).reduce(0, +) ?? 0
      } else {
        nats += try loss.mean.item() * Double(n)
      }
      counted += n
      seen += n
      at += n
    }
    let bytesScored = Double(counted) * shard.bytesPerToken
    bitsPerByte = nats / 0.693_147_180_559_945_3 / max(bytesScored, 1)
    perplexity = Functions.exp(nats / Double(max(counted, 1)))
    tokens = counted
    bytes = Int(bytesScored.rounded())
  }
}
