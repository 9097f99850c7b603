import GyreTensors

/// One token of the matrix recurrences, of sizes that kernels divide among lanes in different ways, in float32 and
/// with what tokens have in bfloat16.
enum HeadStepCases {
  static let sizes: [(K: Int, V: Int)] = [(12, 32), (16, 128), (64, 64), (64, 128), (256, 128)]
  static let types: [DType] = [.float32, .bfloat16]

  static func label(_ name: String, _ dtype: DType, _ size: (K: Int, V: Int)) -> String {
    "one token \(name) \(size.K) by \(size.V)\(dtype == .bfloat16 ? " bfloat16" : "")"
  }
  /// ‖y − r‖/‖r‖, where outputs are rounded.
  static func tolerance(_ dtype: DType) -> Double { dtype == .bfloat16 ? 4e-3 : 2e-5 }

  static func input(
    _ shape: Shape, _ dtype: DType, _ values: TestInput.Values = .normal()
  ) -> TestInput {
    TestInput(shape, values, differentiable: false).stored(as: dtype)
  }

  /// The same cases with the tokens' inputs, those at `tokens`, in bfloat16.
  static func halved(_ cases: [OpCase], tokens: Set<Int>) -> [OpCase] {
    cases.map { item in
      var half = item
      half.label += " bfloat16"
      half.tolerance = tolerance(.bfloat16)
      for i in tokens where i < half.inputs.count {
        half.inputs[i] = half.inputs[i].stored(as: .bfloat16)
      }
      return half
    }
  }
}

extension LinearAttentionForward {
  static let stepCases: [OpCase] = HeadStepCases.types.flatMap { dtype in
    HeadStepCases.sizes.flatMap { size -> [OpCase] in
      let (B, H, K, V) = (3, 2, size.K, size.V)
      func make(
        _ name: String, _ decay: DecayKind, _ normalizer: LinearAttention.Normalizer,
        bonus: Bool = false
      ) -> OpCase {
        func token(_ shape: Shape, _ values: TestInput.Values = .normal()) -> TestInput {
          HeadStepCases.input(shape, dtype, values)
        }
        let features: TestInput.Values = normalizer.hasVector ? .uniform(0.1, 1) : .normal()
        let gate: TestInput? =
          switch decay {
          case .none: nil
          case .constant: HeadStepCases.input([H], .float32, .uniform(-2, 0))
          case .scalar: token([B, 1, H], .uniform(-2, 0))
          case .vector: token([B, 1, H, K], .uniform(-2, 0))
          }
        let inputs: [TestInput?] = [
          token([B, 1, H, K], features), token([B, 1, H, K], features), token([B, 1, H, V]), gate,
          normalizer.isExponential ? token([B, 1, H]) : nil,
          bonus ? HeadStepCases.input([H, K], .float32, .uniform(0, 1)) : nil,
          HeadStepCases.input([B, H, K, V], .float32),
          normalizer.hasVector
            ? HeadStepCases.input([B, H, K], .float32, .uniform(0.5, 1)) : nil,
          normalizer.isExponential ? HeadStepCases.input([B, H], .float32) : nil, nil,
        ]
        return OpCase(
          HeadStepCases.label(name, dtype, size),
          LinearAttentionForward(
            form: .recurrent, decay: decay, normalizer: normalizer, scale: 0.3,
            optional: OptionalInputs(inputs.map { $0 != nil })), inputs.compactMap { $0 },
          tolerance: HeadStepCases.tolerance(dtype))
      }
      return [
        make("scalar", .scalar, .none), make("constant", .constant, .sum(epsilon: 1)),
        make("bonus", .vector, .none, bonus: true),
        make("exponential", .scalar, .exponential(epsilon: 1e-6)),
      ]
    }
  }
}

extension DeltaRuleForward {
  static let stepCases: [OpCase] = HeadStepCases.types.flatMap { dtype in
    HeadStepCases.sizes.flatMap { size -> [OpCase] in
      let (B, H, K, V) = (3, 2, size.K, size.V)
      func make(_ name: String, isGeneral: Bool) -> OpCase {
        func token(_ shape: Shape, _ values: TestInput.Values = .normal()) -> TestInput {
          HeadStepCases.input(shape, dtype, values)
        }
        let (key, low) = (Shape([B, 1, H, K]), 1 / Double(K).squareRoot())
        let inputs: [TestInput?] = [
          token(key), token(key, .normal(scale: low)), token([B, 1, H, V]),
          token(isGeneral ? key : [B, 1, H], .uniform(-2, 0)),
          isGeneral ? nil : token([B, 1, H], .uniform(0, 1.5)),
          isGeneral ? token(key, .normal(scale: low)) : nil,
          isGeneral ? token(key, .normal(scale: low)) : nil,
          HeadStepCases.input([B, H, K, V], .float32), nil,
        ]
        return OpCase(
          HeadStepCases.label(name, dtype, size),
          DeltaRuleForward(
            form: .recurrent, scale: 0.3, keepsChunks: false,
            optional: OptionalInputs(inputs.map { $0 != nil })), inputs.compactMap { $0 },
          tolerance: HeadStepCases.tolerance(dtype))
      }
      return [make("scalar", isGeneral: false), make("general", isGeneral: true)]
    }
  }
}
