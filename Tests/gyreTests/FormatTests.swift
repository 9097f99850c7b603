import Testing

@testable import gyre

@Suite struct FormatTests {
  @Test func numbers() {
    #expect(Format.fixed(3.14159, 2) == "3.14" && Format.fixed(-0.001, 2) == "0.00")
    #expect(Format.fixed(1.05, 3) == "1.050" && Format.fixed(.nan, 1) == "nan")
    #expect(Format.grouped(1_234_567) == "1,234,567" && Format.grouped(-123) == "-123")
    #expect(Format.bytes(1536) == "1.50 KiB" && Format.bytes(12) == "12 B")
    #expect(Format.count(12_345) == "12.3 k" && Format.count(7) == "7")
    #expect(Format.time(0.00123) == "1.23 ms" && Format.clock(3725) == "1:02:05")
    #expect(Format.error(3.14e-7) == "3.1e-7" && Format.error(0) == "0")
  }

  @Test func tablesAlign() {
    var table = Table([("name", .left), ("n", .right)])
    table.add(["a", "10"])
    table.add(["long name", "5"])
    #expect(table.lines() == ["name        n", "─────────────", "a          10", "long name   5"])
  }
}
