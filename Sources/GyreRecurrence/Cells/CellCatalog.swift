/// Every cell that is described once, one line each. The mixers, the op's examples and the laws read
/// this list.
public enum CellCatalog {
  public static let cells: [any Cell.Type] = [
    Elman.self,
    IndependentRNN.self,
    MinimalGatedUnit.self,
    GatedRecurrentUnit.self,
    LightGRU.self,
    LongShortTermMemory.self,
    LSTMFamily.self,
    ProjectedLSTM.self,
    ElementwiseLSTM.self,
    ParaGRU.self,
    ParaLSTM.self,
    ExponentialLSTM.self,
    LongExpressiveMemory.self,
    CoupledOscillators.self,
    IndependentOscillators.self,
    RecurrentHighway.self,
    UnitaryRotations.self,
    PiecewiseLinear.self,
    TeacherForcing.self,
    LegendreMemory.self,
  ]
}
