import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// SIGINT and SIGTERM as a flag that loops look at. A signal a second or more after the first ends the
/// process at once; one that follows closer is the same wish, for `timeout` and terminals signal a
/// process and then its group.
enum Interrupts {
  /// Nanoseconds of the monotonic clock at the first signal; 0 before it.
  private static let first = Atomic<Int>(0)

  /// Whether a signal came since `install`.
  static var isRequested: Bool { first.load(ordering: .relaxed) != 0 }

  /// A reader that goes away must not end a training run: writes then fail instead.
  static func ignoreBrokenPipes() { signal(SIGPIPE, SIG_IGN) }

  static func install() {
    _ = first.load(ordering: .relaxed)
    for number in [SIGINT, SIGTERM] {
      signal(number) { number in
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        let now = max(1, time.tv_sec * 1_000_000_000 + time.tv_nsec)
        let (isFirst, since) = Interrupts.first.compareExchange(
          expected: 0, desired: now, ordering: .relaxed)
        if !isFirst, now - since >= 1_000_000_000 { _exit(128 + number) }
      }
    }
  }
}
