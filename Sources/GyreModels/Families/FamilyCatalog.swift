import GyreLayers

/// Every public checkpoint layout: one line each.
public enum FamilyCatalog {
  public static let families: [any CheckpointFamily.Type] = [
    LlamaFamily.self,
    MambaFamily.self,
    OriginalMambaFamily.self,
    FalconMambaFamily.self,
    Mamba2Family.self,
    JambaFamily.self,
    LFM2Family.self,
    RecurrentGemmaFamily.self,
    Qwen3NextFamily.self,
    FlaGLAFamily.self,
    FlaRetNetFamily.self,
    FlaLinearAttentionFamily.self,
    FlaHGRNFamily.self,
    FlaHGRN2Family.self,
    FlaLightNetFamily.self,
    FlaDeltaNetFamily.self,
    FlaGatedDeltaNetFamily.self,
    FlaGatedDeltaProductFamily.self,
    FlaKDAFamily.self,
    FlaMomFamily.self,
    FlaGSAFamily.self,
    FlaABCFamily.self,
    RWKV4Family.self,
    RWKV6Family.self,
    OriginalRWKV7Family.self,
    RWKV7Family.self,
    XLSTMFamily.self,
    MiniMaxFamily.self,
    ForgettingTransformerFamily.self,
    MesaNetFamily.self,
    FlaRodimusFamily.self,
    FlaMambaFamily.self,
    FlaMamba2Family.self,
  ]

  /// The family of a folder.
  ///
  /// - Throws: when none recognises it, with the nearest one and all that there are.
  public static func family(
    _ config: ForeignConfiguration, tensorNames: Set<String>
  ) throws(ConfigurationError) -> any CheckpointFamily.Type {
    if let found = families.first(where: { $0.recognizes(config, tensorNames: tensorNames) }) {
      return found
    }
    let given = config["model_type"]?.text
    let nearest = nearest(config, tensorNames: tensorNames)
    throw ConfigurationError(
      "model_type",
      (given.map { "\"\($0.prefix(60))\" is not a supported layout" } ?? "is missing")
        + "; nearest is \(nearest.name); there are \(families.map { $0.name })")
  }

  /// The family whose tensor names look most like those given; by the spelling of the model type
  /// where no family can read the configuration.
  public static func nearest(
    _ config: ForeignConfiguration, tensorNames: Set<String>
  ) -> any CheckpointFamily.Type {
    let given = Set(tensorNames.map(numberless))
    var best: (family: any CheckpointFamily.Type, score: Double) = (families[0], 0)
    for family in families {
      guard let plan = try? family.plan(config) else { continue }
      let names = Set(plan.tensors.theirs.map(numberless))
      let union = names.union(given).count
      let score = union == 0 ? 0 : Double(names.intersection(given).count) / Double(union)
      if score > best.score { best = (family, score) }
    }
    if best.score > 0 { return best.family }
    let type = config["model_type"]?.text ?? ""
    func distance(_ family: any CheckpointFamily.Type) -> Int {
      editDistance(type, family.name.split(separator: " ").last.map(String.init) ?? "")
    }
    return families.min { distance($0) < distance($1) } ?? families[0]
  }

  /// `layers.3.mixer` as `layers.*.mixer`.
  private static func numberless(_ name: String) -> String {
    name.split(separator: ".").map { $0.allSatisfy(\.isNumber) ? "*" : $0 }.joined(separator: ".")
  }

  private static func editDistance(_ a: String, _ b: String) -> Int {
    let (a, b) = (Array(a.utf8.prefix(64)), Array(b.utf8.prefix(64)))
    var row = Array(0...b.count)
    for i in a.indices {
      var diagonal = row[0]
      row[0] = i + 1
      for j in b.indices {
        let change = diagonal + (a[i] == b[j] ? 0 : 1)
        diagonal = row[j + 1]
        row[j + 1] = min(change, min(row[j], row[j + 1]) + 1)
      }
    }
    return row[b.count]
  }
}
