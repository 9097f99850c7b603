// swift-tools-version: 6.2
import Foundation
import PackageDescription

let swiftSettings: [SwiftSetting] = [
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("MemberImportVisibility"),
]

/// One line a target: name, the targets it may import, the packages it needs.
func target(
  _ name: String, _ uses: [String] = [], packages: [Target.Dependency] = [],
  exclude: [String] = []
) -> Target {
  .target(
    name: name, dependencies: uses.map { .init(stringLiteral: $0) } + packages,
    exclude: exclude, swiftSettings: swiftSettings)
}

func test(
  _ name: String, _ uses: [String] = [], exclude: [String] = [], resources: [Resource] = []
) -> Target {
  .testTarget(
    name: name + "Tests", dependencies: ([name] + uses).map { .init(stringLiteral: $0) },
    exclude: exclude, resources: resources, swiftSettings: swiftSettings)
}

let crypto = Target.Dependency.product(name: "Crypto", package: "swift-crypto")
let arguments = Target.Dependency.product(
  name: "ArgumentParser", package: "swift-argument-parser")

/// The documentation's builder is fetched only for `Scripts/documentation.sh`.
let documents = ProcessInfo.processInfo.environment["GYRE_DOCUMENTATION"] != nil

/// Kernels for AMX without its tile instructions, to check them on other processors.
let emulatesTiles = ProcessInfo.processInfo.environment["GYRE_EMULATED_TILES"] != nil

let package = Package(
  name: "gyre",
  platforms: [.macOS(.v15)],
  products: [
    .executable(name: "gyre", targets: ["gyre"]),
    .library(
      name: "Gyre",
      targets: [
        "GyreTensors", "GyrePlatform", "GyreLayers", "GyreRecurrence", "GyreMixers",
        "GyreTokenizers", "GyreCheckpoints", "GyreModels", "GyreTraining", "GyreInference",
        "GyreTasks", "GyreEvolution", "GyreConformance", "GyreDistributed",
      ]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-crypto", from: "4.5.2"),
  ]
    + (documents
      ? [.package(url: "https://github.com/swiftlang/swift-docc-plugin", from: "1.5.0")] : []),
  targets: [
    // Level 0
    .target(
      name: "CGyreKernels",
      cSettings: [
        .unsafeFlags(["-O3", "-std=gnu2x", "-fno-math-errno", "-Wno-psabi"])
      ] + (emulatesTiles ? [.define("GYRE_EMULATED_TILES")] : [])),
    .target(
      name: "CGyreCorpus", exclude: ["text"],
      cSettings: [.unsafeFlags(["-std=gnu2x", "-Wno-c23-extensions"])]),
    .target(name: "CGyreCUDALoader", cSettings: [.unsafeFlags(["-std=gnu2x"])]),
    .target(
      name: "CGyreCUDASources", exclude: ["cuda"],
      cSettings: [.unsafeFlags(["-std=gnu2x", "-Wno-c23-extensions"])]),
    target("GyreTensors"),
    target("GyreTokenizers"),
    // Level 1
    target("GyreCPU", ["GyreTensors", "GyreRecurrence", "CGyreKernels"]),
    target(
      "GyreCUDA",
      [
        "GyreTensors", "GyreRecurrence", "GyreDistributed", "CGyreCUDALoader", "CGyreCUDASources",
      ]),
    target("GyreLayers", ["GyreTensors", "GyreRecurrence"]),
    target("GyreRecurrence", ["GyreTensors"]),
    target("GyreCheckpoints", ["GyreTensors"], packages: [crypto]),
    target("GyreDistributed", ["GyreTensors"]),
    // Level 2
    target("GyrePlatform", ["GyreTensors", "GyreDistributed", "GyreCPU", "GyreCUDA"]),
    target("GyreMixers", ["GyreTensors", "GyreRecurrence", "GyreLayers"]),
    // Level 3
    target(
      "GyreModels",
      ["GyreTensors", "GyreLayers", "GyreRecurrence", "GyreMixers", "GyreCheckpoints"]),
    // Level 4
    target(
      "GyreTraining",
      [
        "GyreTensors", "GyreLayers", "GyreRecurrence", "GyreModels", "GyreTokenizers",
        "GyreCheckpoints", "CGyreCorpus",
      ]),
    target(
      "GyreInference",
      [
        "GyreTensors", "GyreLayers", "GyreRecurrence", "GyreModels", "GyreTokenizers",
        "GyreCheckpoints",
      ]),
    // Level 5
    target(
      "GyreConformance",
      [
        "GyreTensors", "GyreLayers", "GyreRecurrence", "GyreMixers", "GyreModels",
        "GyreCheckpoints", "GyreTraining",
      ]),
    target(
      "GyreTasks",
      [
        "GyreTensors", "GyreLayers", "GyreRecurrence", "GyreModels", "GyreTokenizers",
        "GyreCheckpoints", "GyreTraining",
      ]),
    target(
      "GyreEvolution",
      [
        "GyreTensors", "GyreLayers", "GyreRecurrence", "GyreMixers", "GyreModels",
        "GyreTokenizers", "GyreCheckpoints", "GyreTraining", "GyreInference", "GyreDistributed",
      ]),
    // Tests
    test(
      "GyreModels",
      ["GyreCheckpoints", "GyrePlatform", "GyreRecurrence", "GyreTensors"],
      exclude: ["Fixtures"]),
    test(
      "GyreInference",
      ["GyreModels", "GyreLayers", "GyrePlatform", "GyreTokenizers", "GyreCheckpoints"]),
    .testTarget(
      name: "gyreTests", dependencies: ["gyre", arguments], swiftSettings: swiftSettings),
    test("GyreTensors"),
    test("GyreCPU", ["CGyreKernels"]),
    test("GyreMixers", ["GyreTensors", "GyreRecurrence", "GyreLayers", "GyreCPU"]),
    test("GyreDistributed", ["GyreTensors"]),
    test(
      "GyreCUDA",
      ["GyreTensors", "GyreRecurrence", "GyreConformance", "CGyreCUDALoader", "CGyreCUDASources"]),
    test(
      "GyreConformance",
      [
        "GyreTensors", "GyreRecurrence", "GyreMixers", "GyreModels", "GyreCPU", "GyreCheckpoints",
        "GyreLayers",
      ]),
    // Level 6
    .executableTarget(
      name: "gyre",
      dependencies: [
        "GyreTensors", "GyrePlatform", "GyreLayers", "GyreRecurrence", "GyreMixers",
        "GyreTokenizers", "GyreCheckpoints", "GyreModels", "GyreTraining", "GyreInference",
        "GyreTasks", "GyreEvolution", "GyreConformance", "GyreDistributed", arguments,
      ], swiftSettings: swiftSettings),
    // Tests
    test(
      "GyreTraining",
      [
        "GyreTensors", "GyreCPU", "GyreLayers", "GyreModels", "GyreCheckpoints", "GyreTokenizers",
        "GyreRecurrence", "GyreDistributed",
      ]),
    test(
      "GyreTasks",
      [
        "GyreTensors", "GyreCPU", "GyreLayers", "GyreModels", "GyreTraining", "GyreTokenizers",
        "GyreCheckpoints",
      ]),
    test(
      "GyreEvolution",
      [
        "GyreTensors", "GyreCPU", "GyreRecurrence", "GyreLayers", "GyreModels", "GyreTraining",
        "GyreCheckpoints", "GyreInference", "GyreConformance", "GyreTokenizers",
        "GyreMixers", "GyreDistributed",
      ]),
    test("GyreCheckpoints", ["GyreTensors"]),
    test("GyreTokenizers", resources: [.copy("Fixtures")]),
  ]
)
