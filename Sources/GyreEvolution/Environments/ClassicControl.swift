import GyreTensors

/// A pole on a cart, kept upright by pushing left or right: dynamics, limits and rewards of Gymnasium's
/// CartPole-v1 (Barto, Sutton and Anderson 1983).
public struct CartPole: Environment {
  public static let name = "cartpole"
  public static let observationSize = 4
  public static let actionCount = 2
  public static let maximumSteps = 500
  public static let solvedReturn = 475.0
  /// Position, velocity, angle, angular velocity.
  public var state: (x: Double, v: Double, angle: Double, rate: Double)

  public init(_ g: CounterGenerator) {
    func start(_ i: UInt64) -> Double { g.between(-0.05, 0.05, i) }
    state = (start(0), start(1), start(2), start(3))
  }
  public var observation: [Float] {
    [Float(state.x), Float(state.v), Float(state.angle), Float(state.rate)]
  }

  public mutating func step(_ action: Double) -> (reward: Double, ends: Bool) {
    let (gravity, poleMass, halfLength, time) = (9.8, 0.1, 0.5, 0.02)
    let mass = 1 + poleMass
    let force = action >= 0.5 ? 10.0 : -10.0
    let (cosine, sine) = (Functions.cos(state.angle), Functions.sin(state.angle))
    let push = (force + poleMass * halfLength * state.rate * state.rate * sine) / mass
    let turning =
      (gravity * sine - cosine * push)
      / (halfLength * (4.0 / 3.0 - poleMass * cosine * cosine / mass))
    let acceleration = push - poleMass * halfLength * turning * cosine / mass
    state = (
      state.x + time * state.v, state.v + time * acceleration, state.angle + time * state.rate,
      state.rate + time * turning
    )
    let limit = 12 * 2 * Double.pi / 360
    return (1, abs(state.x) > 2.4 || abs(state.angle) > limit)
  }
}

/// A pendulum swung up by a torque in [−2, 2]: Gymnasium's Pendulum-v1.
public struct Pendulum: Environment {
  public static let name = "pendulum"
  public static let observationSize = 3
  public static let actionCount = 0
  public static let maximumSteps = 200
  public static let solvedReturn = -200.0
  public var state: (angle: Double, rate: Double)

  public init(_ g: CounterGenerator) {
    state = (g.between(-Double.pi, Double.pi, 0), g.between(-1, 1, 1))
  }
  public var observation: [Float] {
    [
      Float(Functions.cos(state.angle)), Float(Functions.sin(state.angle)), Float(state.rate),
    ]
  }

  public mutating func step(_ action: Double) -> (reward: Double, ends: Bool) {
    let torque = min(max(2 * action, -2), 2)
    // In [−π, π), as a remainder that is never negative.
    let turn = 2 * Double.pi
    let shifted = (state.angle + Double.pi).truncatingRemainder(dividingBy: turn)
    let angle = (shifted < 0 ? shifted + turn : shifted) - Double.pi
    let cost = angle * angle + 0.1 * state.rate * state.rate + 0.001 * torque * torque
    let rate = state.rate + (15 * Functions.sin(state.angle) + 3 * torque) * 0.05
    state.rate = min(max(rate, -8), 8)
    state.angle += state.rate * 0.05
    return (-cost, false)
  }
}

/// A car too weak for the hill that it must climb: Gymnasium's MountainCar-v0 (Moore 1990).
public struct MountainCar: Environment {
  public static let name = "mountaincar"
  public static let observationSize = 2
  public static let actionCount = 3
  public static let maximumSteps = 200
  public static let solvedReturn = -110.0
  public var state: (x: Double, v: Double)

  public init(_ g: CounterGenerator) { state = (g.between(-0.6, -0.4, 0), 0) }
  public var observation: [Float] { [Float(state.x), Float(state.v)] }

  public mutating func step(_ action: Double) -> (reward: Double, ends: Bool) {
    let v = state.v + (action - 1) * 0.001 + Functions.cos(3 * state.x) * -0.0025
    state.v = min(max(v, -0.07), 0.07)
    state.x = min(max(state.x + state.v, -1.2), 0.6)
    if state.x == -1.2, state.v < 0 { state.v = 0 }
    return (-1, state.x >= 0.5 && state.v >= 0)
  }
}

/// Two links of which the joint between them is driven, to swing the end above a line: Gymnasium's
/// Acrobot-v1 (Sutton 1996), one Runge–Kutta step of 0.2 s.
public struct Acrobot: Environment {
  public static let name = "acrobot"
  public static let observationSize = 6
  public static let actionCount = 3
  public static let maximumSteps = 500
  public static let solvedReturn = -100.0
  /// θ₁, θ₂ and their rates.
  public var state: SIMD4<Double>

  public init(_ g: CounterGenerator) {
    func start(_ i: UInt64) -> Double { g.between(-0.1, 0.1, i) }
    state = [start(0), start(1), start(2), start(3)]
  }
  public var observation: [Float] {
    [
      Float(Functions.cos(state[0])), Float(Functions.sin(state[0])),
      Float(Functions.cos(state[1])), Float(Functions.sin(state[1])), Float(state[2]),
      Float(state[3]),
    ]
  }

  public mutating func step(_ action: Double) -> (reward: Double, ends: Bool) {
    let (torque, h) = (action - 1, 0.2)
    let k1 = Self.slope(state, torque)
    let k2 = Self.slope(state + k1 * (h / 2), torque)
    let k3 = Self.slope(state + k2 * (h / 2), torque)
    let k4 = Self.slope(state + k3 * h, torque)
    var next = state + (k1 + 2 * k2 + 2 * k3 + k4) * (h / 6)
    for i in 0..<2 {
      while next[i] > Double.pi { next[i] -= 2 * Double.pi }
      while next[i] < -Double.pi { next[i] += 2 * Double.pi }
    }
    next[2] = min(max(next[2], -4 * Double.pi), 4 * Double.pi)
    next[3] = min(max(next[3], -9 * Double.pi), 9 * Double.pi)
    state = next
    let ends = -Functions.cos(next[0]) - Functions.cos(next[1] + next[0]) > 1
    return (ends ? 0 : -1, ends)
  }

  /// Masses, lengths and moments of inertia 1, centres of mass at ½, gravity 9.8.
  private static func slope(_ s: SIMD4<Double>, _ torque: Double) -> SIMD4<Double> {
    let (one, two, rate1, rate2) = (s[0], s[1], s[2], s[3])
    let (cosine, sine) = (Functions.cos(two), Functions.sin(two))
    let d1 = 0.25 + (1 + 0.25 + cosine) + 2
    let d2 = 0.25 + 0.5 * cosine + 1
    let phi2 = 0.5 * 9.8 * Functions.cos(one + two - Double.pi / 2)
    let phi1 =
      -0.5 * rate2 * rate2 * sine - rate2 * rate1 * sine
      + 1.5 * 9.8 * Functions.cos(one - Double.pi / 2) + phi2
    let turn2 =
      (torque + d2 / d1 * phi1 - 0.5 * rate1 * rate1 * sine - phi2) / (1.25 - d2 * d2 / d1)
    let turn1 = -(d2 * turn2 + phi1) / d1
    return [rate1, rate2, turn1, turn2]
  }
}
