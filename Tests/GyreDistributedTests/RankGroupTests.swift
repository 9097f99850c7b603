import Dispatch
import Foundation
import GyreTensors
import Synchronization
import Testing

@testable import GyreDistributed

/// A name in the folder for temporary files.
private func freshPath() -> String {
  FileManager.default.temporaryDirectory.path + "/gyre-meeting-\(UInt64.random(in: 0 ... .max))"
}

/// Runs every rank's body on a thread of its own.
private func threads<R: Sendable>(
  _ count: Int, _ body: @escaping @Sendable (Int) throws -> R
) -> [Result<R, any Error>] {
  let results = Mutex([Result<R, any Error>?](repeating: nil, count: count))
  let done = DispatchGroup()
  for rank in 0..<count {
    DispatchQueue(label: "\(rank)").async(group: done) {
      let result = Result { try body(rank) }
      results.withLock { $0[rank] = result }
    }
  }
  done.wait()
  return results.withLock { $0.compactMap(\.self) }
}

@Suite struct RankGroupTests {
  @Test func ranksMeetAtAFileAndExchangeMessages() throws {
    let path = freshPath()
    let gathered = threads(4) { rank in
      let group = try RankGroup.join(rank: rank, count: 4, at: .file(path), seconds: 20)
      let all = try group.gather([UInt8](repeating: UInt8(rank), count: 1 + 100_000 * rank))
      let word = try group.broadcast(rank == 0 ? Array("go".utf8) : [])
      try group.barrier()
      return (all.map(\.count), all.map(\.last), word)
    }
    for result in gathered {
      let (counts, last, word) = try result.get()
      #expect(counts == [1, 100_001, 200_001, 300_001])
      #expect(last == [0, 1, 2, 3])
      #expect(word == Array("go".utf8))
    }
    #expect(!FileManager.default.fileExists(atPath: path))
  }

  /// Somebody who calls the port without knowing the run's word is hung up on.
  @Test func strangersAreNotRanks() throws {
    let path = freshPath()
    let results = threads(3) { role in
      if role == 2 {
        var note: String?
        while note == nil { note = try? String(contentsOfFile: path, encoding: .utf8) }
        let port = UInt16(note?.split(separator: " ").first ?? "") ?? 0
        let socket = try #require(Socket.connect(host: 0x7f00_0001, port: port))
        var junk = [UInt64](repeating: 1, count: 4)
        try junk.withUnsafeMutableBytes { bytes in
          try Transfer.run([Transfer(socket: socket, peer: 0, isSend: true, rest: bytes)])
        }
        return 2
      }
      // The stranger comes first.
      let rank = role
      if rank == 1 { Thread.sleep(forTimeInterval: 0.2) }
      let group = try RankGroup.join(rank: rank, count: 2, at: .file(path), seconds: 20)
      return try group.gather([UInt8(rank)]).count
    }
    for result in results { #expect(try result.get() == 2) }
  }

  @Test func whoDoesNotComeIsNamed() {
    #expect {
      try RankGroup.join(rank: 0, count: 3, at: .file(freshPath()), seconds: 0.2)
    } throws: { "\($0)".contains("2 of 3 ranks did not come, rank 1 first") }
    #expect {
      try RankGroup.join(rank: 1, count: 2, at: .file(freshPath()), seconds: 0.2)
    } throws: { "\($0)".contains("rank 0 was not there") }
    #expect(throws: GroupError.self) {
      try RankGroup.join(rank: 5, count: 2, at: .file(freshPath()))
    }
  }

  @Test func aRankThatEndsIsNamed() throws {
    let outcomes = try RankGroup.outcomes(count: 3) { group in
      if group.rank == 1 { return }
      _ = try group.receive(from: 1)
    }
    #expect(throws: GroupError.lost(rank: 1, reason: "its connection closed")) {
      try outcomes[0].get()
    }
    #expect(throws: GroupError.lost(rank: 1, reason: "its connection closed")) {
      try outcomes[2].get()
    }
  }

  /// The sums are those of the definition, the same bits on all ranks, and a tensor that is given twice is
  /// added once.
  @Test(arguments: [1, 2, 3, 5]) func sumsAreTheSameEverywhere(count: Int) throws {
    let sizes = [1, 7, 1000, 3]
    @Sendable func value(_ rank: Int, _ tensor: Int, _ i: Int) -> Float {
      Float(CounterGenerator(seed: UInt64(rank), stream: UInt64(tensor)).word(UInt64(i)) % 997) / 31
    }
    let sums = try RankGroup.local(count: count) { group in
      let device = ReferenceDevice()
      let communicator = HostCommunicator(group, device: device)
      let tensors = sizes.enumerated().map { t, size in
        Tensor((0..<size).map { value(group.rank, t, $0) }, shape: [size], on: device)
      }
      communicator.sum(tensors + [tensors[1]])
      try device.synchronize()
      return try tensors.map { try $0.elements(Float.self) }
    }
    for sum in sums { #expect(sum == sums[0]) }
    for (t, size) in sizes.enumerated() {
      for i in 0..<size {
        let expected = (0..<count).reduce(Float(0)) { $0 + value($1, t, i) }
        #expect(sums[0][t][i] == expected)
      }
    }
  }

  @Test func environmentsOfLaunchers() throws {
    func read(_ values: [String: String]) throws(GroupError) -> RankEnvironment? {
      try RankEnvironment.read { values[$0] }
    }
    #expect(try read([:]) == nil)
    #expect(try read(["OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"]) == nil)
    let open = try read([
      "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
      "GYRE_RENDEZVOUS": "node0:7000",
    ])
    #expect(
      open
        == RankEnvironment(
          rank: 3, count: 4, localRank: 1, place: .address(host: "node0", port: 7000)))
    let slurm = try read(["SLURM_PROCID": "1", "SLURM_NTASKS": "2", "GYRE_RENDEZVOUS": "/a/b"])
    #expect(slurm == RankEnvironment(rank: 1, count: 2, localRank: 1, place: .file("/a/b")))
    for bad in [
      ["GYRE_RANK": "x", "GYRE_RANKS": "2"], ["GYRE_RANK": "2", "GYRE_RANKS": "2"],
      ["GYRE_RANK": "0", "GYRE_RANKS": "2", "GYRE_RENDEZVOUS": "node0"],
      ["GYRE_RANK": "0", "GYRE_RANKS": "2", "GYRE_RENDEZVOUS": "node0:0"],
    ] { #expect(throws: GroupError.self) { try read(bad) } }
  }
}
