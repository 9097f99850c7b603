// The reading of every character of a Chinese sentence: an LSTM in each direction over the characters.
//
//     swift run -c release mandarin-tagger FOLDER 239 79 4 34 471
//     swift run -c release mandarin-tagger FOLDER --check
//
// FOLDER holds the weights of g2pM (Kyubyong Park and Seanie Lee, Apache-2.0); characters and readings
// are numbers of its dictionaries.
import GyreCheckpoints
import GyreModels
import GyreTensors
import Support

struct Tagger {
  let network: Network
  private let embedding: Tensor
  private let lstm: RecurrentStack

  init(_ network: Network) throws {
    self.network = network
    embedding = try network.tensor("embedding.weight")
    lstm = try RecurrentStack(torch: network.weights, prefix: "lstm.", on: network.device)
  }

  /// States `[1, T, 64]` and scores of the readings `[1, T, 876]`.
  func scores(_ characters: [Int]) throws -> (states: Tensor, scores: Tensor) {
    guard characters.allSatisfy({ (0..<embedding.shape[0]).contains($0) }) else {
      throw ExampleError("characters must be numbers below \(embedding.shape[0])")
    }
    let (h, _) = try lstm(embedding.rows(network.row(characters)))
    func linear(_ x: Tensor, _ name: String) throws -> Tensor {
      try x.linear(network.tensor(name + ".weight"), bias: network.tensor(name + ".bias"))
    }
    let x = try linear(linear(h, "logit_layer.0").relu(), "logit_layer.2")
    return (h, x)
  }
}

run(use: "mandarin-tagger FOLDER (--check | CHARACTER …)") { network, arguments in
  let tagger = try Tagger(network)
  if arguments.first == "--check" {
    let reference = try network.reference()
    let (h, scores) = try tagger.scores(try reference.readInt32("ids").map(Int.init))
    try network.check("states", h, reference.readFloat32("h"), within: 1e-5)
    try network.check("scores", scores, reference.readFloat32("logits_relu"), within: 1e-4)
    let readings = try reference.tensor("logits_relu", on: network.device).argmax().doubles()
    guard try scores.argmax().doubles() == readings else {
      throw ExampleError("other readings than the original's")
    }
    return print("\(readings.count) readings as the original")
  }
  let (_, scores) = try tagger.scores(arguments.compactMap { Int($0) })
  print(try scores.argmax().doubles().map { String(Int($0)) }.joined(separator: " "))
}
