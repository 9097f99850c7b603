import ArgumentParser
import GyreCheckpoints
import GyreInference
import GyreModels
import GyreTensors

struct Logits: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Compute a model's logits for given tokens, for checks by other programs.",
    discussion: """
      Reads `input_ids` [B, T] (any integer type) and writes float32 `logits` [B, T, V].

        gyre logits runs/tiny-1 --input tokens.safetensors --output logits.safetensors
        gyre logits runs/tiny-1 --input t.safetensors --output l.safetensors --form recurrent

        gyre logits fla-mom --input t.safetensors --output l.safetensors --compat fla_mom

      The three forms evaluate the same recurrence: token by token, in chunks, all at once.
      """)

  @Argument(help: "A run folder: config.json and model.safetensors.") var folder: String
  @Option(help: "A safetensors file with input_ids.") var input: String
  @Option(help: "The safetensors file to write.") var output: String
  @Option(help: "recurrent, chunkwise or parallel.") var form = FormName.chunkwise
  @Option(help: "Precision of matrix products, of weights widened to float32: f32 or bf16.")
  var dtype = Precision.f32
  @OptionGroup var compatibility: CompatibilityOptions
  @OptionGroup var device: DeviceOptions

  func run() throws {
    let file = try SafetensorsFile(path: input)
    let shape = try file.info("input_ids").shape
    guard shape.rank == 2 else { throw Failure("\(input): input_ids is \(shape), must be [B, T]") }
    let ids = try file.readInt32("input_ids")
    let device = try device.open()
    let model = try StoredModel.load(
      folder: folder, device: device, matrices: dtype == .bf16 ? .bfloat16 : .float32,
      compatibility: compatibility.faults)
    let vocabulary = model.configuration.vocabulary
    if let bad = ids.firstIndex(where: { $0 < 0 || Int($0) >= vocabulary }) {
      throw Failure("\(input): input_ids[\(bad)] is \(ids[bad]), the model knows 0..<\(vocabulary)")
    }
    let logits = try ComputePrecision.$current.withValue(dtype.compute) {
      var state = model.makeState(batch: shape[0])
      let hidden = model.hidden(
        Tensor(ids, shape: shape, on: device), state: &state, form: form.form)
      return try model.logits(hidden).floats()
    }
    var writer = SafetensorsWriter()
    try writer.add(
      "logits", dtype: .float32, shape: [shape[0], shape[1], vocabulary], values: logits)
    try writer.write(to: output)
  }
}
