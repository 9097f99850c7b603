import GyreLayers

/// Named configurations: `tiny`, and about 10M, 100M, 350M and 1.3B parameters of nine architectures.
public enum Presets {
  public static let names: [String] =
    ["tiny"]
    + Architecture.allCases.flatMap { architecture in
      Size.allCases.map { "\(architecture.rawValue)-\($0.rawValue)" }
    }

  enum Architecture: String, CaseIterable {
    case rwkv7, mamba2
    case gatedDeltaNet = "gated-deltanet"
    case minGRU = "mingru"
    case llama
    case paraGRU = "para-gru"
    case xLSTM = "xlstm"
    case languiniLSTM = "languini-lstm"
    case awdLSTM = "awd-lstm"
  }

  enum Size: String, CaseIterable {
    case m10 = "10m"
    case m100 = "100m"
    case m350 = "350m"
    case b13 = "1.3b"
    var extents: (width: Int, layers: Int) {
      switch self {
      case .m10: (320, 7)
      case .m100: (768, 13)
      case .m350: (1024, 26)
      case .b13: (2048, 24)
      }
    }
  }

  /// The configuration of that name for a vocabulary.
  ///
  /// - Throws: when no preset has the name.
  public static func configuration(
    _ name: String, vocabulary: Int = 256
  ) throws(ConfigurationError) -> ModelConfiguration {
    var c = ModelConfiguration()
    c.vocabulary = vocabulary
    if name == "tiny" {
      tiny(&c)
      return c
    }
    for architecture in Architecture.allCases {
      for size in Size.allCases where name == "\(architecture.rawValue)-\(size.rawValue)" {
        (c.width, c.layers) = size.extents
        architecture.apply(to: &c)
        return c
      }
    }
    throw ConfigurationError("model", "no preset is called \(name); there are \(names)")
  }

  /// The demonstration: 1.5M parameters that learn most from three minutes on two cores.
  private static func tiny(_ c: inout ModelConfiguration) {
    c.width = 192
    c.layers = 3
    c.pattern = ["gated_delta_net"]
    c.mixers["gated_delta_net"] = .object([
      "headSize": .integer(32), "heads": .integer(6), "valueExpansion": .integer(1),
    ])
    c.feedForwardOptions = .object(["hidden": .integer(512)])
  }
}

extension Presets.Architecture {
  /// Head sizes that divide all widths.
  fileprivate func apply(to c: inout ModelConfiguration) {
    switch self {
    case .rwkv7:
      c.pattern = ["rwkv7"]
      c.feedForward = "rwkv7_channel_mix"
      c.norm = .layer
      c.normEpsilon = 1e-5
      c.normalizesEmbedding = true
    case .mamba2:
      c.pattern = ["mamba2"]
      c.feedForward = nil
      c.layers *= 2
      c.normEpsilon = 1e-5
    case .gatedDeltaNet: c.pattern = ["gated_delta_net"]
    case .minGRU: c.pattern = ["min_gru"]
    case .llama:
      c.pattern = ["softmax_attention"]
      c.normEpsilon = 1e-5
    // ParaRNN: the cell in its block, gated feed-forward blocks between.
    case .paraGRU: c.pattern = ["para_gru_block"]
    // xLSTM[7:1].
    case .xLSTM: c.pattern = [String](repeating: "mlstm", count: 7) + ["slstm"]
    // LSTMs whose recurrent matrices are heads of 64, residual, with feed-forward blocks (Stanić et
    // al., "The Languini kitchen", 2023, https://arxiv.org/abs/2309.11197).
    case .languiniLSTM:
      c.pattern = ["lstm"]
      c.mixers["lstm"] = .object(["heads": .integer(c.width / 64)])
    case .awdLSTM: c.setAWD()
    }
  }
}

extension ModelConfiguration {
  /// AWD-LSTM: LSTMs on top of each other without residuals or norms, the embedding as head, and the
  /// dropouts and penalties of Merity, Keskar and Socher, 2017. Train with `--optimizer ntasgd`.
  fileprivate mutating func setAWD() {
    layers = max(3, layers / 3)
    pattern = ["lstm"]
    feedForward = nil
    norm = .none
    tiesEmbedding = true
    initialDeviation = 0.1
    residualFactors = ["lstm": [0, 1]]
    mixers["lstm"] = .object([
      "projects": .bool(false),
      "dropout": .object(["variational": .number(0.25), "weight": .number(0.5)]),
    ])
    embeddingDropout = 0.1
    outputDropout = 0.4
    activationPenalty = 2
    temporalPenalty = 1
  }
}
