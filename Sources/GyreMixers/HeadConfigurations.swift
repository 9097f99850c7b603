import GyreLayers
import GyreTensors

/// Options of a mixer whose keys and values, all heads together, are so many times as wide as the model.
public protocol ExpandedHeads: MixerConfiguration {
  var heads: Int { get }
  /// Total key and value widths over the model's width.
  var keyExpansion: Double { get }
  var valueExpansion: Double { get }
}

extension ExpandedHeads {
  /// Channels of all heads.
  func channels(_ width: Int) -> (keys: Int, values: Int) {
    (
      Int((keyExpansion * Double(width)).rounded()), Int((valueExpansion * Double(width)).rounded())
    )
  }
  /// Channels of a head.
  func sizes(_ width: Int) -> (key: Int, value: Int) {
    let all = channels(width)
    return (all.keys / max(heads, 1), all.values / max(heads, 1))
  }
  func validateHeads(_ width: Int) throws(ConfigurationError) {
    try HeadSizes.positive(heads, "heads")
    try HeadSizes.expanded(keyExpansion, width, by: heads, field: "keyExpansion")
    try HeadSizes.expanded(valueExpansion, width, by: heads, field: "valueExpansion")
  }
}

extension ExpandedHeads {
  /// Channels of all heads where fractions are dropped.
  func flooredChannels(_ width: Int) -> (keys: Int, values: Int) {
    (Int(keyExpansion * Double(width)), Int(valueExpansion * Double(width)))
  }
  func validateFlooredHeads(_ width: Int) throws(ConfigurationError) {
    try HeadSizes.expansion(keyExpansion, "keyExpansion")
    try HeadSizes.expansion(valueExpansion, "valueExpansion")
    let (keys, values) = flooredChannels(width)
    try HeadSizes.divide(keys, by: heads, field: "heads", of: "key width")
    try HeadSizes.divide(values, by: heads, field: "heads", of: "value width")
  }
}

/// The same with keys and values shared by groups of query heads.
public protocol GroupedHeads: ExpandedHeads {
  /// Heads of k and v; 0: as many as query heads.
  var keyHeads: Int { get set }
}

extension GroupedHeads {
  var keyHeadCount: Int { keyHeads > 0 ? keyHeads : heads }

  public func resolved(width: Int) -> Self {
    with(self) { $0.keyHeads = keyHeadCount }
  }
  func validateGroups(_ width: Int) throws(ConfigurationError) {
    try validateHeads(width)
    try HeadSizes.groups(keyHeads, of: heads, field: "keyHeads")
  }
  /// Channels of q, k and v.
  func mixed(_ width: Int) -> [Int] {
    let (key, value) = sizes(width)
    return [heads * key, keyHeadCount * key, keyHeadCount * value]
  }
}

/// Options of a delta rule's heads: their size is given, and value heads may be a multiple of key heads.
public protocol DeltaHeads: MixerConfiguration {
  var headSize: Int { get }
  /// Key heads; 0: `widthShare` of width / headSize, at least 1.
  var heads: Int { get set }
  /// Value heads; 0: as many as key heads.
  var valueHeads: Int { get set }
  /// Value channels a head over `headSize`.
  var valueExpansion: Double { get }
  static var widthShare: Double { get }
}

extension DeltaHeads {
  func keyHeads(_ width: Int) -> Int {
    heads > 0 ? heads : max(1, Int(Self.widthShare * Double(width)) / headSize)
  }
  func headCount(_ width: Int) -> Int { valueHeads > 0 ? valueHeads : keyHeads(width) }
  var valueSize: Int { Int((valueExpansion * Double(headSize)).rounded()) }

  public func resolved(width: Int) -> Self {
    with(self) {
      $0.heads = keyHeads(width)
      $0.valueHeads = headCount(width)
    }
  }
  func validateHeads(_ width: Int) throws(ConfigurationError) {
    try HeadSizes.positive(headSize, "headSize")
    try require(heads >= 0, "heads", "must not be negative, is \(heads)")
    try require(valueHeads >= 0, "valueHeads", "must not be negative, is \(valueHeads)")
    try require(
      headCount(width) % keyHeads(width) == 0, "valueHeads",
      "must be a multiple of \(keyHeads(width)) key heads, is \(valueHeads)")
    try HeadSizes.expanded(valueExpansion, headSize, by: 1, field: "valueExpansion")
  }
}
