import GyreRecurrence

/// Every mixer and feed-forward block by the name that configurations use: one line each.
public enum MixerCatalog {
  public static let mixers: [any SequenceMixer.Type] = [
    MinGRU.self,
    MinLSTM.self,
    GRU.self,
    LSTM.self,
    SLSTM.self,
    CellMixer<Elman>.self,
    CellMixer<IndependentRNN>.self,
    CellMixer<MinimalGatedUnit>.self,
    CellMixer<GatedRecurrentUnit>.self,
    CellMixer<LightGRU>.self,
    CellMixer<LSTMFamily>.self,
    CellMixer<ProjectedLSTM>.self,
    CellMixer<ElementwiseLSTM>.self,
    CellMixer<ParaGRU>.self,
    CellMixer<ParaLSTM>.self,
    CellMixer<ExponentialLSTM>.self,
    CellMixer<LongExpressiveMemory>.self,
    CellMixer<CoupledOscillators>.self,
    CellMixer<IndependentOscillators>.self,
    CellMixer<RecurrentHighway>.self,
    CellMixer<UnitaryRotations>.self,
    CellMixer<PiecewiseLinear>.self,
    CellMixer<TeacherForcing>.self,
    CellMixer<LegendreMemory>.self,
    CellBlock<ParaGRU>.self,
    CellBlock<ParaLSTM>.self,
    RGLRU.self,
    HGRN.self,
    Mamba1.self,
    Mamba2.self,
    RetNet.self,
    LinearAttentionMixer.self,
    GatedLinearAttention.self,
    HGRN2.self,
    LightNet.self,
    Rodimus.self,
    GatedSlotAttention.self,
    BoundedMemoryAttention.self,
    MLSTM.self,
    DeltaNet.self,
    GatedDeltaNet.self,
    GatedDeltaProduct.self,
    KimiDeltaAttention.self,
    MixtureOfMemories.self,
    RWKV4.self,
    RWKV6.self,
    RWKV7.self,
    AttentionMixer.self,
    ShortConvolutionMixer.self,
    ForgettingAttention.self,
    LightningAttention.self,
    MesaNet.self,
  ]

  public static let feedForwards: [any SequenceMixer.Type] = [
    GatedMLP.self,
    SharedKeyMLP.self,
    PlainMLP.self,
    MixtureOfExperts.self,
    RWKV4ChannelMix.self,
    RWKV6ChannelMix.self,
    RWKV7ChannelMix.self,
  ]

  /// The type of that name, in either list.
  public static func type(of kind: String) -> (any SequenceMixer.Type)? {
    (mixers + feedForwards).first { $0.kind == kind }
  }
}
