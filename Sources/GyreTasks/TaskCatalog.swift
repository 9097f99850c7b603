/// Every task by the name that commands use: one line each.
public enum TaskCatalog {
  public static let entries: [TaskEntry] = [
    .parity,
    .evenPairs,
    .modularAddition,
    .modularArithmetic,
    .bracketArithmetic,
    .symmetric3,
    .alternating5,
    .symmetric5,
    .dyck,
    .flipFlop,
    .copying,
    .selectiveCopying,
    .associativeRecall,
    .setDisjointness,
    .induction,
    .randomAutomata,
    .passkey,
    .needle,
  ]

  /// The task of a description: a name, or a name with options, `dyck:kinds=3,depth=6`.
  ///
  /// - Throws: the name or option that does not exist or is out of its range.
  public static func task(_ description: String) throws(TaskError) -> any SequenceTask {
    let (entry, values) = try parse(description)
    return try entry.make(values)
  }

  /// The description with every option written out; equal tasks have equal ones.
  public static func canonical(_ description: String) throws(TaskError) -> String {
    let (entry, values) = try parse(description)
    guard !entry.options.isEmpty else { return entry.name }
    return entry.name + ":"
      + entry.options.map { "\($0.name)=\(values[$0.name])" }.joined(separator: ",")
  }

  /// The entry and the options of a description.
  public static func parse(
    _ description: String
  ) throws(TaskError) -> (entry: TaskEntry, values: TaskValues) {
    let parts = description.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
    let name = String(parts[0])
    guard let entry = entries.first(where: { $0.name == name }) else {
      throw .unknown(name: name, known: entries.map(\.name))
    }
    var values = Dictionary(uniqueKeysWithValues: entry.options.map { ($0.name, $0.initial) })
    for item in parts.count > 1 ? parts[1].split(separator: ",") : [] {
      let pair = item.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      let key = String(pair[0])
      guard let option = entry.options.first(where: { $0.name == key }) else {
        let known = entry.options.map(\.name).joined(separator: ", ")
        throw .option(
          task: name,
          reason: "'\(key)' is not an option; there are \(known.isEmpty ? "none" : known)")
      }
      guard pair.count == 2, let value = Int(pair[1]), option.range.contains(value) else {
        throw .option(task: name, reason: "\(key) must be a whole number in \(option.range)")
      }
      values[key] = value
    }
    return (entry, TaskValues(values: values))
  }
}
