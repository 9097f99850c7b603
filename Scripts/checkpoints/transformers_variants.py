"""Small random models of the transformers library with options that its defaults do not use.

usage: transformers_variants.py OUT [NAME …]

Writes OUT/NAME/{config.json, model.safetensors, expected.safetensors} in the layout of the reference
checkpoints: input_ids [2, T], logits [2, T, V], loss, greedy, grad.NAME for every parameter that the library
differentiates. Needs torch, transformers and safetensors; runs on a CPU in float32.
"""
import os
import shutil
import sys

import torch
import transformers as tf
from safetensors.torch import save_file

SMALL = dict(vocab_size=40, hidden_size=24, num_hidden_layers=3)
LLAMA = dict(SMALL, intermediate_size=36, num_attention_heads=6, num_key_value_heads=2, head_dim=8,
             max_position_embeddings=64, num_hidden_layers=2)
MAMBA = dict(SMALL, state_size=6, num_hidden_layers=2)
QWEN = dict(SMALL, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
            linear_key_head_dim=6, linear_value_head_dim=10, linear_num_key_heads=2,
            linear_num_value_heads=6, intermediate_size=28, moe_intermediate_size=12,
            shared_expert_intermediate_size=20, num_experts=5, num_experts_per_tok=3,
            max_position_embeddings=64)


def rope(kind, **more):
    return dict(LLAMA, rope_parameters=dict(rope_type=kind, rope_theta=500.0, **more))


VARIANTS = {
    "llama_bias": (tf.LlamaConfig, dict(LLAMA, attention_bias=True, mlp_bias=True, head_dim=12,
                                        hidden_act="gelu", tie_word_embeddings=True,
                                        rms_norm_eps=1e-3)),
    "llama_linear": (tf.LlamaConfig, rope("linear", factor=3.0)),
    "llama_dynamic": (tf.LlamaConfig, dict(rope("dynamic", factor=2.0), max_position_embeddings=24)),
    "llama_yarn": (tf.LlamaConfig, rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama_yarn_options": (tf.LlamaConfig, rope(
        "yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=8.0, beta_slow=2.0,
        mscale=0.7, mscale_all_dim=1.3, truncate=False)),
    "llama_llama3": (tf.LlamaConfig, rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32)),
    "llama_longrope": (tf.LlamaConfig, rope(
        "longrope", factor=4.0, original_max_position_embeddings=16,
        short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[1.0, 2.0, 3.0, 4.0])),
    "mamba_options": (tf.MambaConfig, dict(
        MAMBA, expand=3, conv_kernel=3, use_bias=True, use_conv_bias=False, hidden_act="gelu",
        time_step_rank=5, tie_word_embeddings=True, layer_norm_epsilon=1e-3)),
    "falcon_mamba_options": (tf.FalconMambaConfig, dict(
        MAMBA, conv_kernel=2, use_bias=True, mixer_rms_eps=1e-2, tie_word_embeddings=True)),
    "mamba2_groups": (tf.Mamba2Config, dict(
        MAMBA, expand=2, head_dim=6, num_heads=8, n_groups=4, use_bias=True, conv_kernel=3,
        chunk_size=16, time_step_limit=(0.01, 0.05), tie_word_embeddings=True,
        layer_norm_epsilon=1e-3)),
    "mamba2_plain": (tf.Mamba2Config, dict(
        MAMBA, expand=1, head_dim=8, num_heads=3, n_groups=3, use_conv_bias=False, chunk_size=8)),
    "jamba_options": (tf.JambaConfig, dict(
        SMALL, num_hidden_layers=6, intermediate_size=20, num_attention_heads=4,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, expert_layer_period=3,
        expert_layer_offset=2, attn_layer_period=4, attn_layer_offset=3, mamba_d_state=8,
        mamba_expand=3, mamba_dt_rank=7, mamba_conv_bias=False, mamba_proj_bias=True,
        mamba_d_conv=3, tie_word_embeddings=True)),
    "jamba_dense": (tf.JambaConfig, dict(
        SMALL, num_hidden_layers=4, intermediate_size=20, num_attention_heads=4, num_experts=1,
        num_key_value_heads=4, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4)),
    "lfm2_options": (tf.Lfm2Config, dict(
        SMALL, num_hidden_layers=4, intermediate_size=45, num_attention_heads=4,
        num_key_value_heads=2, conv_bias=True, conv_L_cache=4, block_multiple_of=8,
        block_ffn_dim_multiplier=1.3, full_attn_idxs=[1, 3], tie_word_embeddings=True,
        rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=1000.0))),
    "lfm2_plain": (tf.Lfm2Config, dict(
        SMALL, intermediate_size=56, num_attention_heads=4, num_key_value_heads=4,
        block_auto_adjust_ff_dim=False, tie_word_embeddings=False,
        layer_types=["conv", "full_attention", "conv"])),
    "recurrent_gemma_options": (tf.RecurrentGemmaConfig, dict(
        SMALL, num_hidden_layers=4, intermediate_size=50, num_attention_heads=4,
        num_key_value_heads=1, lru_width=28, attention_window_size=9, conv1d_width=3,
        logits_soft_cap=5.0, attention_bias=True, hidden_activation="silu",
        block_types=["recurrent", "attention"],
        rope_parameters=dict(rope_type="default", rope_theta=100.0, partial_rotary_factor=1.0))),
    "qwen3_next_options": (tf.Qwen3NextConfig, dict(
        QWEN, attention_bias=True, norm_topk_prob=False, mlp_only_layers=[1],
        decoder_sparse_step=2, linear_conv_kernel_dim=3, tie_word_embeddings=True,
        layer_types=["full_attention", "linear_attention", "full_attention", "linear_attention"],
        rope_parameters=dict(rope_type="yarn", factor=2.0, rope_theta=100.0,
                             partial_rotary_factor=0.5, original_max_position_embeddings=16))),
    "rwkv_options": (tf.RwkvConfig, dict(
        SMALL, num_hidden_layers=4, intermediate_size=50, rescale_every=2,
        layer_norm_epsilon=1e-3, context_length=64)),
    "rwkv_tied": (tf.RwkvConfig, dict(
        SMALL, rescale_every=0, tie_word_embeddings=True, context_length=64)),
    "xlstm_options": (tf.xLSTMConfig, dict(
        SMALL, hidden_size=64, num_heads=2, use_bias=True, qk_dim_factor=1.0, v_dim_factor=2.0,
        ffn_proj_factor=1.3, ffn_round_up_to_multiple_of=32, chunk_size=16, eps=1e-5,
        gate_soft_cap=8.0, output_logit_soft_cap=10.0)),
    "minimax_options": (tf.MiniMaxConfig, dict(
        SMALL, num_hidden_layers=4, intermediate_size=20, num_attention_heads=4,
        num_key_value_heads=2, head_dim=20, num_local_experts=4, num_experts_per_tok=2,
        block_size=16, full_attn_alpha_factor=1.5, full_attn_beta_factor=0.7,
        linear_attn_alpha_factor=2.0, linear_attn_beta_factor=0.5, mlp_alpha_factor=1.2,
        mlp_beta_factor=0.8, sliding_window=9, hidden_act="gelu")),
    "minimax_tied": (tf.MiniMaxConfig, dict(
        SMALL, intermediate_size=40, num_attention_heads=2, num_key_value_heads=1,
        num_local_experts=3, num_experts_per_tok=1, tie_word_embeddings=True,
        layer_types=["linear_attention", "linear_attention", "full_attention"],
        rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=10000.0))),
    "qwen3_next_dense": (tf.Qwen3NextConfig, dict(QWEN, num_experts=0, hidden_act="gelu")),
}


def build(name, out):
    make, options = VARIANTS[name]
    torch.manual_seed(sum(map(ord, name)))
    config = make(**options, pad_token_id=None)
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for key, p in model.named_parameters():
            p.add_(torch.randn_like(p) * (0.1 if p.dim() > 1 else 0.2))
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    sharded = name in ("jamba_options",)
    model.save_pretrained(folder, **(dict(max_shard_size="100KB") if sharded else {}))
    model.eval()
    ids = torch.randint(0, config.vocab_size, (2, 45))
    extra = dict(use_cache=False) if config.model_type == "recurrent_gemma" else {}
    logits = model(ids, **extra).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, config.vocab_size), ids[:, 1:].reshape(-1))
    # rwkv divides some of its weights in place when it first evaluates, and xlstm cannot be differentiated here.
    if config.model_type not in ("rwkv", "xlstm"):
        loss.backward()
    expected = {"input_ids": ids.int(), "logits": logits.detach().contiguous(),
                "loss": loss.detach().reshape(1)}
    # Without the cache: its recurrent step is other code, which forgets some options.
    row = ids[:1]
    with torch.no_grad():
        for _ in range(6):
            row = torch.cat([row, model(row, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    # Dynamic rotary scaling depends on how a sequence is cut.
    if name != "llama_dynamic":
        expected["greedy"] = row[0, ids.shape[1]:].int()
    for key, p in model.named_parameters():
        if p.grad is not None:
            expected["grad." + key] = p.grad.contiguous()
    save_file(expected, os.path.join(folder, "expected.safetensors"))
    print(name, sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    for name in sys.argv[2:] or VARIANTS:
        build(name, sys.argv[1])
