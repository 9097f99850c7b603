import GyreLayers
import GyreModels
import Testing

@Suite struct FlaFamilyTests {
  private func plan(_ json: String) throws -> FamilyPlan {
    let config = try ForeignConfiguration(json: Array(json.utf8))
    return try FamilyCatalog.family(config, tensorNames: []).plan(config)
  }

  /// What cannot be names the field of the file.
  @Test(arguments: [
    (#"{"model_type": "gla", "num_heads": 3}"#, "expand_k"),
    (#"{"model_type": "gla", "num_heads": 4, "num_kv_heads": 3}"#, "num_kv_heads"),
    (#"{"model_type": "gla", "feature_map": "cosine"}"#, "feature_map"),
    (#"{"model_type": "gla", "hidden_act": "gelu"}"#, "hidden_act"),
    (#"{"model_type": "gla", "hidden_size": "wide"}"#, "hidden_size"),
    (#"{"model_type": "gla", "conv_size": 40}"#, "conv_size"),
    (#"{"model_type": "gla", "attn": {"layers": [99], "num_heads": 4}}"#, "attn.layers"),
    (#"{"model_type": "gla", "attn": {"layers": [1, 1], "num_heads": 4}}"#, "attn.layers"),
    (#"{"model_type": "gla", "attn": {"layers": [1]}}"#, "attn.num_heads"),
    (#"{"model_type": "gla", "attn": [{"layers": [1], "num_heads": 7}]}"#, "attn[0].num_heads"),
    (#"{"model_type": "retnet", "expand_k": 0.3}"#, "expand_k"),
    (#"{"model_type": "linear_attn", "feature_map": "softmax"}"#, "feature_map"),
    (#"{"model_type": "delta_net", "qk_norm": "l1"}"#, "qk_norm"),
    (#"{"model_type": "gated_deltanet", "num_v_heads": 7}"#, "num_v_heads"),
    (#"{"model_type": "gated_deltanet", "expand_v": 0.001}"#, "expand_v"),
    (#"{"model_type": "gated_deltaproduct", "num_householder": 0}"#, "num_householder"),
    (#"{"model_type": "kda", "safe_gate": true}"#, "lower_bound"),
    (#"{"model_type": "kda", "lower_bound": 1}"#, "lower_bound"),
    (#"{"model_type": "hgrn2", "expand_ratio": 100}"#, "expand_ratio"),
    (#"{"model_type": "gsa", "exapnd_v": 2}"#, "exapnd_v"),
    (#"{"model_type": "abc", "clamp_min": 40}"#, "clamp_min"),
    (#"{"model_type": "mom", "topk": 9}"#, "topk"),
    (#"{"model_type": "mom", "mom_backend": "gla"}"#, "mom_backend"),
    (#"{"model_type": "lightnet", "expand_ratio": null}"#, "num_heads"),
    (#"{"model_type": "rodimus"}"#, "ska_attn"),
    (#"{"model_type": "rodimus", "block_type": "other"}"#, "block_type"),
    (#"{"model_type": "mamba2", "norm_eps": 1e-5, "head_dim": 60}"#, "head_dim"),
  ])
  func mistakesNameTheField(_ json: String, _ field: String) {
    #expect { try plan(json) } throws: { error in
      (error as? ConfigurationError)?.path == field
    }
  }

  /// A public configuration of what a model computes means the same model again.
  @Test(arguments: [
    #"{"model_type": "gla", "num_kv_heads": 2, "feature_map": "gelu", "use_short_conv": true}"#,
    #"{"model_type": "gla", "use_output_gate": false, "clamp_min": -1, "elementwise_affine": false}"#,
    #"{"model_type": "retnet", "feature_map": "relu", "num_kv_heads": 4}"#,
    #"{"model_type": "linear_attn", "feature_map": "hedgehog", "tie_feature_map_qk": true}"#,
    #"{"model_type": "hgrn", "expand_ratio": 2, "use_short_conv": true, "conv_size": 3}"#,
    #"{"model_type": "hgrn2", "expand_ratio": 64, "use_lower_bound": false}"#,
    #"{"model_type": "lightnet", "gate_low_rank_dim": 16}"#,
    #"{"model_type": "delta_net", "qk_activation": "elu", "qk_norm": "sum", "use_beta": false}"#,
    #"{"model_type": "gated_deltanet", "num_v_heads": 12, "output_gate_activation": "sigmoid"}"#,
    #"{"model_type": "gated_deltaproduct", "num_householder": 3, "use_forget_gate": true}"#,
    #"{"model_type": "kda", "lower_bound": -5, "safe_gate": true}"#,
    #"{"model_type": "mom", "single_kv_proj": true, "topk": 1}"#,
    #"{"model_type": "gsa", "num_slots": null, "feature_map": "t2r"}"#,
    #"{"model_type": "abc", "clamp_max": null, "use_rope": false}"#,
  ])
  func exportsMeanTheSame(_ json: String) throws {
    let first = try plan(json).model
    let family = try FamilyCatalog.family(
      try ForeignConfiguration(json: Array(json.utf8)), tensorNames: [])
    let layout = try PublicLayout(of: first)
    #expect(layout.family.name == family.name)
  }
}
