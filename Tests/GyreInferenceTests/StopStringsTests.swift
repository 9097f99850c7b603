import GyreInference
import Testing

@Suite struct StopStringsTests {
  /// What comes out when a text arrives in pieces of `length` characters.
  private func run(_ text: String, _ stop: [String], _ length: Int) -> (String, Bool) {
    var stops = StopStrings(stop)
    var out = ""
    var rest = text[...]
    while !rest.isEmpty, !stops.isStopped {
      out += stops.append(String(rest.prefix(length)))
      rest = rest.dropFirst(length)
    }
    return (out + stops.finish(), stops.isStopped)
  }

  @Test(arguments: [1, 2, 3, 7, 100]) func endsBeforeTheFirst(_ length: Int) {
    #expect(run("one two three", ["three", "two"], length) == ("one ", true))
    #expect(run("aaab", ["aab"], length) == ("a", true))
    #expect(run("héllo – ende", ["– e"], length) == ("héllo ", true))
  }

  @Test(arguments: [1, 2, 3, 7, 100]) func keepsWhatIsNotThere(_ length: Int) {
    #expect(run("one two thre", ["three"], length) == ("one two thre", false))
    #expect(run("text", [], length) == ("text", false))
    #expect(run("text", [""], length) == ("text", false))
  }

  @Test func holdsBackOpenEndsOnly() {
    var stops = StopStrings(["END"])
    #expect(stops.append("see E") == "see ")
    #expect(stops.append("N") == "")
    #expect(stops.append("T") == "ENT")
    #expect(stops.append("END more") == "")
    #expect(stops.isStopped)
    #expect(stops.append("x") == "")
  }
}
