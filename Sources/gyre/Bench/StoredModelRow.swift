import GyreInference
import GyreModels
import GyreRecurrence
import GyreTensors

/// Reading a prompt and writing after it with a stored model, greedily, in one process.
struct StoredModelRow: Encodable {
  var model: String
  var loadSeconds: Double
  var promptTokens, decodedTokens: Int
  var promptTokensPerS, decodeTokensPerS: Double
  /// Bytes that parameters have in memory of their own; mapped ones are not among them.
  var ownBytes: Int

  enum CodingKeys: String, CodingKey {
    case model
    case loadSeconds = "load_s"
    case promptTokens = "prompt_tokens"
    case decodedTokens = "decoded_tokens"
    case promptTokensPerS = "prompt_tokens_per_s"
    case decodeTokensPerS = "decode_tokens_per_s"
    case ownBytes = "own_bytes"
  }

  /// - Parameter ops: prints where the time of reading and of writing goes.
  init(
    _ path: String, on device: any Device, widens: Bool, prompt: Int, tokens: Int, ops: Bool
  ) throws {
    let clock = ContinuousClock()
    var loaded: LanguageModel?
    loadSeconds = try clock.measure {
      loaded = try StoredModel.load(
        folder: path, device: device, matrices: widens ? .float32 : .stored)
    }.seconds
    guard let model = loaded else { throw Failure("'\(path)' was not loaded") }
    self.model = path
    ownBytes = device.memory.inUse
    (promptTokens, decodedTokens) = (prompt, tokens)
    let generator = CounterGenerator(seed: 0, name: "prompt")
    let vocabulary = model.configuration.vocabulary
    let ids = (0..<max(prompt, 1)).map {
      Int32(generator.integer(UInt64($0), below: vocabulary))
    }

    func read(_ ids: [Int32], _ state: inout ModelState) throws -> Int32 {
      var start = 0
      var last: Tensor?
      while start < ids.count {
        let end = min(start + GenerationOptions().prefillLength, ids.count)
        let piece = Tensor(Array(ids[start..<end]), shape: [1, end - start], on: device)
        let form: SequenceForm = ids.count == 1 ? .recurrent : .chunkwise
        let hidden = model.hidden(piece, state: &state, form: form)
        last = hidden.sliced(end - start - 1..<end - start, axis: 1)
        start = end
      }
      guard let last else { return 0 }
      let logits = try model.logits(last).floats()
      return Int32(logits.indices.max { logits[$0] < logits[$1] } ?? 0)
    }

    var warm = model.makeState(batch: 1)
    var next = try read(Array(ids.prefix(64)), &warm)
    for _ in 0..<4 { next = try read([next], &warm) }

    let times = ops ? (device as? HostDevice)?.opTimes : nil
    func timed(_ what: String, _ repeats: Int, _ body: () throws -> Void) throws -> Double {
      times?.clear()
      times?.isOn = true
      let seconds = try clock.measure(body).seconds
      times?.isOn = false
      if let times {
        Terminal.note("\(what): \(Format.time(seconds))")
        times.report(repeats: repeats)
      }
      return seconds
    }
    var state = model.makeState(batch: 1)
    promptTokensPerS = try Double(prompt) / timed("prompt", 1) { next = try read(ids, &state) }
    // Ops are counted where they run one by one.
    if ops {
      decodeTokensPerS =
        try Double(tokens)
        / timed("decode", tokens) { for _ in 0..<tokens { next = try read([next], &state) } }
      return
    }
    var decoder = Decoder(model, from: state, reading: [next])
    try decoder.step()
    decodeTokensPerS =
      try Double(tokens)
      / timed("decode", tokens) {
        for _ in 0..<tokens { try decoder.step() }
        try device.synchronize()
      }
  }

  func print() {
    Terminal.line(
      "\(model): loaded in \(Format.time(loadSeconds)), \(Format.count(Double(ownBytes), "B")) in "
        + "memory of its own")
    var table = Table([("", .left), ("tokens", .right), ("tokens/s", .right)])
    table.add(["prompt", Format.grouped(promptTokens), Format.fixed(promptTokensPerS, 1)])
    table.add(["decode", Format.grouped(decodedTokens), Format.fixed(decodeTokensPerS, 1)])
    table.print()
  }
}
