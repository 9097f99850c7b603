// Text, character by character: two LSTMs over the last 40 characters, and an attention-weighted
// average of all they and the embedding say.
//
//     swift run -c release character-model FOLDER "The way" 0.5
//     swift run -c release character-model FOLDER --check
//
// FOLDER holds the weights of textgenrnn (Max Woolf, MIT), as Keras stores them.
import GyreCheckpoints
import GyreModels
import GyreRecurrence
import GyreTensors
import Support

struct CharacterModel {
  static let window = 40
  private struct Meta: Decodable { let vocab: [String: Int] }
  private let network: Network
  private let first, second: RecurrentLayer
  private let embedding, attention, outputWeight, outputBias: Tensor
  let number: [String: Int]
  let character: [Int: String]

  init(_ network: Network) throws {
    self.network = network
    func lstm(_ name: String) throws -> RecurrentLayer {
      try RecurrentLayer(
        .lstm,
        RecurrentWeights(
          keras: network.weights, .lstm, kernel: name + "_k", recurrentKernel: name + "_r",
          bias: name + "_b", on: network.device))
    }
    (first, second) = (try lstm("rnn1"), try lstm("rnn2"))
    (embedding, attention) = (try network.tensor("embedding"), try network.tensor("attention_W"))
    (outputWeight, outputBias) = (try network.tensor("out_w"), try network.tensor("out_b"))
    number = try network.json("meta.json", as: Meta.self).vocab
    character = Dictionary(number.map { ($1, $0) }, uniquingKeysWith: { a, _ in a })
  }

  /// Probabilities of the character after the last 40; 0 stands for none.
  func next(_ characters: [Int]) throws -> Tensor {
    let recent = characters.suffix(CharacterModel.window)
    let ids = [Int](repeating: 0, count: CharacterModel.window - recent.count) + recent
    let x = embedding.rows(network.row(ids))
    var states = [first, second].map { State($0.stateSpec, batch: 1) }
    let h1 = first(x, state: &states[0])
    let h2 = second(h1, state: &states[1])
    let seen = concatenated([x, h1, h2]).reshaped([ids.count, -1])
    let weights = seen.matmul(attention).reshaped([1, ids.count]).softmax()
    return (weights.matmul(seen).matmul(outputWeight) + outputBias).softmax()
  }

  /// Continues a text until the model ends it.
  func text(after start: String, temperature: Double) throws -> String {
    let boundary = number["<s>"] ?? 0
    var ids = [boundary] + start.compactMap { number[String($0)] }
    var result = start
    var generator = SystemRandomNumberGenerator()
    while result.count < 300 {
      let p = try next(ids).doubles()
      var choice = p.indices.max { p[$0] < p[$1] } ?? 0
      if temperature > 0 {
        let weights = p.map { Functions.exp(Functions.log(max($0, 1e-30)) / temperature) }
        var rest = Double.random(in: 0..<weights.reduce(0, +), using: &generator)
        choice =
          weights.indices.first {
            rest -= weights[$0]; return rest < 0
          } ?? choice
      }
      guard choice != boundary, let c = character[choice] else { break }
      ids.append(choice)
      result += c
    }
    return result
  }
}

run(use: "character-model FOLDER (--check | TEXT [TEMPERATURE])") { network, arguments in
  let model = try CharacterModel(network)
  if arguments.first == "--check" {
    let reference = try network.reference()
    let p = try model.next(try reference.readInt32("ids").map(Int.init))
    return try network.check("probabilities", p, reference.readFloat32("probs"), within: 1e-6)
  }
  let temperature = arguments.count > 1 ? Double(arguments[1]) ?? 0.5 : 0.5
  print(try model.text(after: arguments.first ?? "", temperature: temperature))
}
