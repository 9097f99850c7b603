// English spelling to phonemes: a GRU reads the letters, another writes the sounds.
//
//     swift run -c release letters-to-phonemes FOLDER recurrent network
//     swift run -c release letters-to-phonemes FOLDER --check
//
// FOLDER holds the weights of g2p_en (Kyubyong Park, Apache-2.0).
import GyreCheckpoints
import GyreModels
import GyreRecurrence
import GyreTensors
import Support

struct Speller {
  private struct Alphabets: Decodable { let graphemes, phonemes: [String] }
  private let network: Network
  private let alphabets: Alphabets
  private let letters, sounds, outputWeight, outputBias: Tensor
  private let encoder, decoder: RecurrentLayer

  init(_ network: Network) throws {
    self.network = network
    alphabets = try network.json("meta.json")
    func layer(_ part: String) throws -> RecurrentLayer {
      try RecurrentLayer(
        .gru,
        RecurrentWeights(
          input: network.tensor(part + "_w_ih"), recurrent: network.tensor(part + "_w_hh"),
          inputBias: network.tensor(part + "_b_ih"), recurrentBias: network.tensor(part + "_b_hh")))
    }
    (encoder, decoder) = (try layer("enc"), try layer("dec"))
    (letters, sounds) = (try network.tensor("enc_emb"), try network.tensor("dec_emb"))
    (outputWeight, outputBias) = (try network.tensor("fc_w"), try network.tensor("fc_b"))
  }

  func phonemes(of word: String) throws -> [String] {
    func letter(_ c: String) -> Int {
      alphabets.graphemes.firstIndex(of: c) ?? alphabets.graphemes.firstIndex(of: "<unk>") ?? 0
    }
    let ids = word.lowercased().map { letter(String($0)) } + [letter("</s>")]
    var state = State(encoder.stateSpec, batch: 1)
    _ = encoder(letters.rows(network.row(ids)), state: &state)
    // The decoder goes on from the encoder's last state, one sound at a time.
    var (result, previous) = ([String](), alphabets.phonemes.firstIndex(of: "<s>") ?? 0)
    while result.count < 20 {
      let h = decoder(sounds.rows(network.row([previous])), state: &state)
      previous = Int(try h.linear(outputWeight, bias: outputBias).argmax().doubles()[0])
      if alphabets.phonemes[previous] == "</s>" { break }
      result.append(alphabets.phonemes[previous])
    }
    return result
  }

  func check() throws {
    let reference = try network.reference()
    let x = try reference.tensor("x", on: network.device)
    var state = State(encoder.stateSpec, batch: 1)
    try network.check(
      "encoder states", encoder(x, state: &state), reference.readFloat32("enc"), within: 1e-5)
    let words = try network.json("words.json", as: [String: [String]].self)
    let wrong = try words.filter { try phonemes(of: $0.key) != $0.value }.keys.sorted()
    print("\(words.count - wrong.count) of \(words.count) words as the original")
    if !wrong.isEmpty { throw ExampleError("different: \(wrong)") }
  }
}

run(use: "letters-to-phonemes FOLDER (--check | WORD …)") { network, arguments in
  let speller = try Speller(network)
  if arguments.first == "--check" { return try speller.check() }
  for word in arguments {
    print(word, try speller.phonemes(of: word).joined(separator: " "), separator: "\t")
  }
}
