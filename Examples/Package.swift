// swift-tools-version: 6.2
import PackageDescription

/// One program: `swift run -c release NAME …`.
func example(_ name: String, _ folder: String) -> Target {
  .executableTarget(
    name: name,
    dependencies: ["Support", .product(name: "Gyre", package: "gyre")], path: "Sources/\(folder)",
    swiftSettings: [.enableUpcomingFeature("MemberImportVisibility")])
}

let package = Package(
  name: "gyre-examples",
  platforms: [.macOS(.v15)],
  dependencies: [.package(name: "gyre", path: "..")],
  targets: [
    .target(name: "Support", dependencies: [.product(name: "Gyre", package: "gyre")]),
    example("letters-to-phonemes", "LettersToPhonemes"),
    example("voice-activity", "VoiceActivity"),
    example("mandarin-tagger", "MandarinTagger"),
    example("character-model", "CharacterModel"),
  ]
)
