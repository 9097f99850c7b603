// Where somebody speaks: a short-time spectrum, four convolutions and an LSTM cell that remembers from
// frame to frame. 16 kHz, frames of 512 samples.
//
//     swift run -c release voice-activity FOLDER speech.wav
//     swift run -c release voice-activity FOLDER --check
//
// FOLDER holds the weights of Silero VAD (Silero team, MIT).
import Foundation
import GyreCheckpoints
import GyreModels
import GyreRecurrence
import GyreTensors
import Support

struct VoiceActivity {
  static let frame = 512
  private let network: Network
  private let lstm: RecurrentLayer

  init(_ network: Network) throws {
    self.network = network
    lstm = try RecurrentLayer(
      .lstm, RecurrentWeights(torch: network.weights, prefix: "lstm_cell.", on: network.device))
  }

  /// Every frame with the 64 samples before it, and 64 after it mirrored at its end: `[frames, 640, 1]`.
  private func frames(_ samples: [Float]) -> Tensor {
    let (size, context) = (VoiceActivity.frame, 64)
    let count = samples.count / size
    let rows = (0..<count).flatMap { i in
      let before = i == 0 ? [Float](repeating: 0, count: context) : []
      let known = before + samples[max(i * size - context, 0)..<(i + 1) * size]
      return known + known.dropLast().suffix(context).reversed()
    }
    return Tensor(rows, shape: [count, size + 2 * context, 1], on: network.device)
  }

  /// A convolution over `[rows, time, channels]` as one product: the taps of every place are gathered.
  private func convolution(_ x: Tensor, _ name: String, stride: Int, padding: Int) throws -> Tensor
  {
    let weight = try network.tensor(name + ".weight")
    let bias = network.weights.contains(name + ".bias") ? try network.tensor(name + ".bias") : nil
    let (rows, time, channels) = (x.shape[0], x.shape[1], x.shape[2])
    let (outputs, taps) = (weight.shape[0], weight.shape[2])
    let places = (time + 2 * padding - taps) / stride + 1
    // One row of zeros stands for all that is outside.
    let zeros = Tensor.zeros([1, channels], on: x.device)
    let table = concatenated([x.reshaped([rows * time, channels]), zeros], axis: 0)
    let index = (0..<rows * places * taps).map { i in
      let t = i / taps % places * stride + i % taps - padding
      return Int32((0..<time).contains(t) ? i / taps / places * time + t : rows * time)
    }
    let gathered = table.rows(Tensor(index, shape: [rows, places, taps], on: x.device))
    return gathered.reshaped([rows, places, taps * channels]).linear(
      weight.permuted([0, 2, 1]).reshaped([outputs, taps * channels]), bias: bias)
  }

  /// What the LSTM sees of each frame, `[1, frames, 128]`.
  func features(_ samples: [Float]) throws -> Tensor {
    let spectrum = try convolution(frames(samples), "stft_conv", stride: 128, padding: 0)
    let parts = spectrum.split([129, 129])
    var x = (parts[0] * parts[0] + parts[1] * parts[1]).unary(.sqrt)
    for (name, stride) in [("conv1", 1), ("conv2", 2), ("conv3", 2), ("conv4", 1)] {
      x = try convolution(x, name, stride: stride, padding: 1).relu()
    }
    return x.reshaped([1, x.shape[0], x.shape[2]])
  }

  /// States and probabilities of speech, frame by frame.
  func probabilities(_ features: Tensor) throws -> (states: Tensor, speech: Tensor) {
    var state = State(lstm.stateSpec, batch: 1)
    let h = lstm(features, state: &state)
    let weight = try network.tensor("final_conv.weight")
    let logits = try h.relu().linear(
      weight.reshaped([1, weight.shape[1]]), bias: network.tensor("final_conv.bias"))
    return (h, logits.sigmoid())
  }

  func check() throws {
    let reference = try network.reference()
    let x = try features(try reference.readFloat32("wav"))
    try network.check("LSTM inputs", x, reference.readFloat32("lstm_in"), within: 1e-4)
    let (states, speech) = try probabilities(x)
    try network.check("states", states, reference.readFloat32("h"), within: 1e-4)
    try network.check("probabilities", speech, reference.readFloat32("p"), within: 1e-5)
  }
}

/// Samples of a 16-bit mono WAVE file.
func samples(of path: String) throws -> [Float] {
  let bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
  guard bytes.count > 44, String(decoding: bytes[8..<12], as: UTF8.self) == "WAVE" else {
    throw ExampleError("\(path) is not a WAVE file")
  }
  var (at, rate) = (12, 0)
  while at + 8 <= bytes.count {
    func number(_ offset: Int, _ count: Int) -> Int {
      (0..<count).reduce(0) { $0 | Int(bytes[offset + $1]) << (8 * $1) }
    }
    let (name, size) = (String(decoding: bytes[at..<at + 4], as: UTF8.self), number(at + 4, 4))
    if name == "fmt ", size >= 16, at + 24 <= bytes.count {
      rate = number(at + 12, 4)
      guard number(at + 8, 2) == 1, number(at + 10, 2) == 1, number(at + 22, 2) == 16 else {
        throw ExampleError("\(path) is not 16-bit mono PCM")
      }
    }
    if name == "data" {
      guard rate == 16000 else {
        throw ExampleError("\(path) has \(rate) samples a second, not 16000")
      }
      let end = min(at + 8 + size, bytes.count)
      return stride(from: at + 8, to: end - 1, by: 2).map {
        Float(Int16(truncatingIfNeeded: number($0, 2))) / 32768
      }
    }
    at += 8 + size + size % 2
  }
  throw ExampleError("\(path) has no samples")
}

run(use: "voice-activity FOLDER (--check | speech.wav)") { network, arguments in
  let detector = try VoiceActivity(network)
  guard let path = arguments.first, path != "--check" else { return try detector.check() }
  let speech = try detector.probabilities(detector.features(samples(of: path))).speech.floats()
  let seconds = Double(VoiceActivity.frame) / 16000
  var start: Int?
  for (i, p) in (speech + [0]).enumerated() {
    if p >= 0.5, start == nil { start = i }
    if p < 0.5, let from = start {
      print(String(format: "%.2f s to %.2f s", Double(from) * seconds, Double(i) * seconds))
      start = nil
    }
  }
}
