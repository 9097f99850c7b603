import GyreTensors

/// Every op of the engines with cases, one line each. Conformance and benchmarks read this list.
public enum EngineCatalog {
  public static let ops: [any Op.Type] = [
    DiagonalScanForward.self,
    MinGRUForward.self,
    LinearAttentionForward.self,
    DeltaRuleForward.self,
  ]
}
