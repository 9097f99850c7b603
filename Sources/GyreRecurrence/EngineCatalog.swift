import GyreTensors

/// Every engine's op, one line each. Conformance, gradient checks and benchmarks read this list.
public enum EngineCatalog {
  public static let ops: [any Op.Type] = [
    DiagonalScanForward.self,
    ComplexScanForward.self,
    BlockScanForward.self,
    MinGRUForward.self,
    MinGRUToken.self,
    SelectiveScanForward.self,
    WKV4Forward.self,
    MesaForward.self,
    LinearAttentionForward.self,
    ScaledLinearAttention.self,
    MatrixLSTMStep.self,
    DeltaRuleForward.self,
    GatedDeltaStep.self,
    RWKV7Step.self,
    CellForward.self,
    RecurrentGradients.self,
    RecurrentCellForward.self,
    AttentionForward.self,
    AttentionStep.self,
    AdditiveGateForward.self,
    EggForward.self,
    EggUpdate.self,
  ]
}
