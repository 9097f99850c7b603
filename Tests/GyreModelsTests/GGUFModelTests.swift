import Foundation
import GyreCheckpoints
import GyreModels
import GyrePlatform
import GyreTensors
import Testing

/// Golden checkpoints written as llama.cpp's converter lays them out give the golden logits.
@Suite struct GGUFModelTests {
  private static let fixtures = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    .appendingPathComponent("Fixtures/checkpoints").path

  private typealias Change = ([Float], Shape) -> ([Float], Shape)
  private typealias Row = (theirs: String, name: String, change: Change)

  private static func same(_ values: [Float], _ shape: Shape) -> ([Float], Shape) {
    (values, shape)
  }

  /// Rows (head, half, i) become (head, i, half).
  private static func interleaved(_ heads: Int) -> Change {
    { values, shape in
      let (rows, columns) = (shape[0], shape[1])
      let half = rows / heads / 2
      var out: [Float] = []
      for head in 0..<heads {
        for i in 0..<half {
          for part in 0..<2 {
            let row = (head * 2 + part) * half + i
            out += values[row * columns..<(row + 1) * columns]
          }
        }
      }
      return (out, shape)
    }
  }

  private static func llama(_ writer: inout GGUFWriter) -> [Row] {
    for (key, value) in [
      ("block_count", 2), ("embedding_length", 64), ("feed_forward_length", 128),
      ("attention.head_count", 4), ("attention.head_count_kv", 2), ("context_length", 2048),
    ] { writer.set("llama.\(key)", .integer(Int64(value))) }
    writer.set("llama.attention.layer_norm_rms_epsilon", .float(1e-6))
    return [
      ("model.embed_tokens.weight", "token_embd.weight", same),
      ("model.norm.weight", "output_norm.weight", same), ("lm_head.weight", "output.weight", same),
    ]
      + (0..<2).flatMap { i -> [Row] in
        let (theirs, ours) = ("model.layers.\(i)", "blk.\(i)")
        return [
          ("\(theirs).input_layernorm.weight", "\(ours).attn_norm.weight", same),
          ("\(theirs).post_attention_layernorm.weight", "\(ours).ffn_norm.weight", same),
          ("\(theirs).self_attn.q_proj.weight", "\(ours).attn_q.weight", interleaved(4)),
          ("\(theirs).self_attn.k_proj.weight", "\(ours).attn_k.weight", interleaved(2)),
          ("\(theirs).self_attn.v_proj.weight", "\(ours).attn_v.weight", same),
          ("\(theirs).self_attn.o_proj.weight", "\(ours).attn_output.weight", same),
          ("\(theirs).mlp.gate_proj.weight", "\(ours).ffn_gate.weight", same),
          ("\(theirs).mlp.up_proj.weight", "\(ours).ffn_up.weight", same),
          ("\(theirs).mlp.down_proj.weight", "\(ours).ffn_down.weight", same),
        ]
      }
  }

  private static func mamba2(_ writer: inout GGUFWriter) -> [Row] {
    for (key, value) in [
      ("block_count", 2), ("embedding_length", 64), ("ssm.state_size", 16), ("ssm.conv_kernel", 4),
      ("ssm.inner_size", 128), ("ssm.time_step_rank", 4), ("ssm.group_count", 1),
    ] { writer.set("mamba2.\(key)", .integer(Int64(value))) }
    writer.set("mamba2.attention.layer_norm_rms_epsilon", .float(1e-5))
    let column: Change = { ($0, [$1[0], 1]) }
    return [
      ("backbone.embeddings.weight", "token_embd.weight", same),
      ("backbone.norm_f.weight", "output_norm.weight", same),
      ("lm_head.weight", "output.weight", same),
    ]
      + (0..<2).flatMap { i -> [Row] in
        let (theirs, ours) = ("backbone.layers.\(i)", "blk.\(i)")
        return [
          ("\(theirs).norm.weight", "\(ours).attn_norm.weight", same),
          ("\(theirs).mixer.in_proj.weight", "\(ours).ssm_in.weight", same),
          ("\(theirs).mixer.conv1d.weight", "\(ours).ssm_conv1d.weight", { ($0, [$1[0], $1[2]]) }),
          ("\(theirs).mixer.conv1d.bias", "\(ours).ssm_conv1d.bias", same),
          ("\(theirs).mixer.dt_bias", "\(ours).ssm_dt.bias", same),
          ("\(theirs).mixer.A_log", "\(ours).ssm_a", { ($0.map { -exp($0) }, [$1[0], 1]) }),
          ("\(theirs).mixer.D", "\(ours).ssm_d", column),
          ("\(theirs).mixer.norm.weight", "\(ours).ssm_norm.weight", { ($0, [1, $1[0]]) }),
          ("\(theirs).mixer.out_proj.weight", "\(ours).ssm_out.weight", same),
        ]
      }
  }

  @Test(arguments: ["hf_llama", "hf_mamba2"]) func logits(_ name: String) throws {
    let golden = Self.fixtures + "/" + name
    let weights = try SafetensorsFile(path: golden + "/model.safetensors")
    var writer = GGUFWriter(architecture: name.hasSuffix("llama") ? "llama" : "mamba2")
    let rows = name.hasSuffix("llama") ? Self.llama(&writer) : Self.mamba2(&writer)
    #expect(Set(rows.map(\.theirs)) == Set(weights.names))
    for row in rows {
      let (values, shape) = row.change(
        try weights.readFloat32(row.theirs), try weights.info(row.theirs).shape)
      try writer.add(row.name, { values }, shape: shape, as: .float32)
    }
    let path =
      FileManager.default.temporaryDirectory.path + "/gyre-\(UInt64.random(in: 0 ... .max)).gguf"
    defer { try? FileManager.default.removeItem(atPath: path) }
    try writer.write(to: path)

    let device = try Devices.open("cpu")
    let folder = try ModelFolder(path: path)
    #expect(folder.isGGUF)
    let model = try folder.load(on: device)
    let expected = try SafetensorsFile(path: golden + "/expected.safetensors")
    let tokens = Tensor(
      try expected.readInt32("input_ids"), shape: try expected.info("input_ids").shape, on: device)
    var state = model.makeState(batch: tokens.shape[0])
    let y = try model.logits(model.hidden(tokens, state: &state)).floats()
    let r = try expected.readFloat32("logits")
    let largest = r.map(abs).max() ?? 0
    let worst = zip(y, r).map { abs($0 - $1) }.max() ?? .infinity
    #expect(y.count == r.count && worst <= 2e-4 * largest, "\(name): \(worst / largest)")
  }

  @Test func mistakesNameTheKey() throws {
    let path =
      FileManager.default.temporaryDirectory.path + "/gyre-\(UInt64.random(in: 0 ... .max)).gguf"
    defer { try? FileManager.default.removeItem(atPath: path) }
    for (architecture, says) in [
      ("gpt-oss", "general.architecture"), ("llama", "llama.block_count"),
    ] {
      try GGUFWriter(architecture: architecture).write(to: path)
      do {
        _ = try ModelFolder(path: path)
        Issue.record("\(architecture) was read")
      } catch { #expect("\(error)".contains(says), "\(error)") }
    }
  }
}
