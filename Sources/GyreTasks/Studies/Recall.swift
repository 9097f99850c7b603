import GyreModels

extension Study {
  /// What recurrences keep of what they read, by the size of their state.
  public static let recall = Study(
    name: "recall", title: "Recall",
    tasks: [
      StudyTask("MQAR 4", "mqar:pairs=4,keys=16,values=16", length: 16, steps: 800),
      StudyTask("MQAR 8", "mqar:pairs=8,keys=16,values=16", length: 28, steps: 800),
      StudyTask("MQAR 16", "mqar:pairs=16,keys=16,values=16", length: 48, steps: 800),
      StudyTask(
        "MQAR 8, twice", "mqar:pairs=8,keys=16,values=16,repeats=2", length: 44, steps: 800),
      StudyTask("small set first", "set_disjointness:small=2,elements=32", length: 20, steps: 800),
      StudyTask(
        "large set first", "set_disjointness:small=2,elements=32,order=1", length: 20, steps: 800),
      StudyTask(
        "large first, twice", "set_disjointness:small=2,elements=32,order=1,repeats=2", length: 39,
        steps: 800),
      StudyTask("induction", "induction:symbols=16", length: 40, steps: 600),
      StudyTask(
        "selective copying", "selective_copying:symbols=8,count=6", length: 32, steps: 600),
      StudyTask("copying", "copying:symbols=8", length: 33, shortest: 3, steps: 600),
      StudyTask("passkey", "passkey", length: 48, shortest: 14, steps: 600),
      StudyTask("needle", "needle", length: 48, shortest: 20, steps: 800),
      StudyTask("random automata", "random_automata:states=4,symbols=8", length: 48, steps: 600),
    ],
    models: [
      StudyModel("attention", "attention", "softmax_attention", ["heads": .integer(4)]),
      StudyModel("min_gru", "vector state", "min_gru"),
      StudyModel("lstm", "vector state", "lstm"),
      StudyModel("gla-4", "matrix state, gated", "gla", gla(4)),
      StudyModel("gla-16", "matrix state, gated", "gla", gla(16)),
      StudyModel("gla-64", "matrix state, gated", "gla", gla(64)),
      StudyModel("mamba2-4", "matrix state, gated", "mamba2", mamba2(4)),
      StudyModel("mamba2-16", "matrix state, gated", "mamba2", mamba2(16)),
      StudyModel("mamba2-64", "matrix state, gated", "mamba2", mamba2(64)),
      StudyModel("gated_delta_net-4", "matrix state, delta rule", "gated_delta_net", delta(4)),
      StudyModel("gated_delta_net-16", "matrix state, delta rule", "gated_delta_net", delta(16)),
      StudyModel("gated_delta_net-64", "matrix state, delta rule", "gated_delta_net", delta(64)),
      StudyModel("rwkv7-16", "matrix state, delta rule", "rwkv7", ["headSize": .integer(16)]),
    ],
    width: 64, layers: 2, batch: 32, learningRate: 3e-3, multiples: [1, 2, 4], rows: 128)

  /// One head whose keys have so many channels: the state has 64 numbers a channel of the key.
  private static func gla(_ keys: Int) -> [String: JSONValue] {
    [
      "heads": .integer(1), "keyExpansion": .number(Double(keys) / 64), "convolution": .integer(4),
    ]
  }
  private static func mamba2(_ keys: Int) -> [String: JSONValue] {
    ["expansion": .integer(1), "headSize": .integer(64), "stateSize": .integer(keys)]
  }
  private static func delta(_ keys: Int) -> [String: JSONValue] {
    [
      "heads": .integer(1), "headSize": .integer(keys),
      "valueExpansion": .number(64 / Double(keys)),
    ]
  }
}
