import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// SIGINT and SIGTERM as a flag that loops look at. The second signal ends the process at once.
enum Interrupts {
  private static let flag = Atomic<Bool>(false)

  /// Whether a signal came since `install`.
  static var isRequested: Bool { flag.load(ordering: .relaxed) }

  /// A reader that goes away must not end a training run: writes then fail instead.
  static func ignoreBrokenPipes() { signal(SIGPIPE, SIG_IGN) }

  static func install() {
    _ = flag.load(ordering: .relaxed)
    for number in [SIGINT, SIGTERM] {
      signal(number) { number in
        if Interrupts.flag.exchange(true, ordering: .relaxed) { _exit(128 + number) }
      }
    }
  }
}
