import GyreModels

extension Study {
  /// Which recurrences follow a state that inputs change, and how far beyond the trained length.
  public static let stateTracking = Study(
    name: "state-tracking", title: "State tracking",
    tasks: [
      task("parity", "parity", steps: 800),
      task("even pairs", "even_pairs", steps: 500),
      task("flip-flop", "flip_flop", steps: 300),
      task("Dyck 2, depth 4", "dyck", steps: 500),
      task("Z3", "modular_addition:modulus=3", steps: 800),
      task("Z5", "modular_addition:modulus=5", steps: 800),
      task("arithmetic", "modular_arithmetic", steps: 800),
      task("brackets", "bracket_arithmetic", steps: 600),
      task("S3", "s3", steps: 800),
      task("A5", "a5:generators=1", steps: 1000),
      task("S5", "s5:generators=1", steps: 1000),
    ],
    models: [
      StudyModel("attention", "attention", "softmax_attention", ["heads": .integer(4)]),
      StudyModel("min_gru", "diagonal, in (0, 1)", "min_gru"),
      StudyModel("gla", "diagonal, in (0, 1)", "gla", ["keyExpansion": .integer(1)]),
      StudyModel("mlstm", "diagonal, in (0, 1)", "mlstm", ["keyExpansion": .integer(1)]),
      StudyModel("mamba", "diagonal, in (0, 1)", "mamba", mamba(false)),
      StudyModel("mamba2", "diagonal, in (0, 1)", "mamba2", mamba2(false)),
      StudyModel("mamba-negative", "diagonal, in (-1, 1)", "mamba", mamba(true)),
      StudyModel("mamba2-negative", "diagonal, in (-1, 1)", "mamba2", mamba2(true)),
      StudyModel("delta_net", "delta rule, in (0, 1)", "delta_net", ["convolution": .integer(0)]),
      StudyModel(
        "gated_delta_net", "delta rule, in (0, 1)", "gated_delta_net", delta(negative: false)),
      StudyModel(
        "delta_product-2-positive", "delta rule, in (0, 1)", "gated_delta_product",
        product(2, negative: false)),
      StudyModel("rwkv7", "delta rule, in (0, 1)", "rwkv7", rwkv7(false)),
      StudyModel(
        "delta_net-negative", "delta rule, in (-1, 1)", "delta_net",
        ["convolution": .integer(0), "negativeEigenvalues": .bool(true)]),
      StudyModel(
        "gated_delta_net-negative", "delta rule, in (-1, 1)", "gated_delta_net",
        delta(negative: true)),
      StudyModel("rwkv7-negative", "delta rule, in (-1, 1)", "rwkv7", rwkv7(true)),
      StudyModel(
        "delta_product-2", "products of reflections", "gated_delta_product",
        product(2, negative: true)),
      StudyModel(
        "delta_product-4", "products of reflections", "gated_delta_product",
        product(4, negative: true)),
      StudyModel("elman", "nonlinear", "elman"),
      StudyModel("ind_rnn", "nonlinear", "ind_rnn"),
      StudyModel("gru", "nonlinear", "gru"),
      StudyModel("lstm", "nonlinear", "lstm"),
      StudyModel("slstm", "nonlinear", "slstm"),
      StudyModel("para_gru", "nonlinear, diagonal", "para_gru"),
      StudyModel("para_lstm", "nonlinear, diagonal", "para_lstm"),
    ],
    width: 64, layers: 1, batch: 32, learningRate: 3e-3, multiples: LengthCurve.multiples,
    rows: 64)

  /// Rows grow to 40 tokens over the first half of the steps.
  private static func task(_ name: String, _ task: String, steps: Int) -> StudyTask {
    StudyTask(name, task, length: 40, shortest: 5, grows: true, steps: steps)
  }

  private static func mamba(_ negative: Bool) -> [String: JSONValue] {
    [
      "convolution": .integer(1), "stateSize": .integer(4),
      "negativeEigenvalues": .bool(negative),
    ]
  }
  private static func mamba2(_ negative: Bool) -> [String: JSONValue] {
    [
      "convolution": .integer(1), "headSize": .integer(16), "stateSize": .integer(16),
      "negativeEigenvalues": .bool(negative),
    ]
  }
  private static func delta(negative: Bool) -> [String: JSONValue] {
    [
      "convolution": .integer(0), "headSize": .integer(16), "heads": .integer(4),
      "valueExpansion": .integer(1), "negativeEigenvalues": .bool(negative),
    ]
  }
  private static func product(_ reflections: Int, negative: Bool) -> [String: JSONValue] {
    delta(negative: negative).merging(
      ["reflections": .integer(reflections), "decays": .bool(false)]) { _, new in new }
  }
  private static func rwkv7(_ negative: Bool) -> [String: JSONValue] {
    ["headSize": .integer(16), "negativeEigenvalues": .bool(negative)]
  }
}
