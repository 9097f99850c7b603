"""Small random models of flash-linear-attention with options that its defaults do not use.

usage: fla_variants.py OUT [NAME …]

Writes OUT/NAME/{config.json, model.safetensors, expected.safetensors} in the layout of the reference
checkpoints: input_ids [2, T], logits [2, T, V], loss, grad.NAME for every parameter that the library
differentiates here. Needs torch, triton, transformers, safetensors and flash-linear-attention 0.6; runs
on a CPU in float32, its kernels in Triton's interpreter.
"""
import importlib.machinery
import json
import os
import shutil
import sys
import types

os.environ["TRITON_INTERPRET"] = "1"
import torch
import triton
import triton.runtime.autotuner as autotuner


def attention(q, k, v, causal=True, window_size=(-1, -1)):
    """What flash_attn computes, for hybrids."""
    (n, d), m = (q.shape[1], q.shape[3]), k.shape[1]
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    i, j = torch.arange(n)[:, None] + m - n, torch.arange(m)[None]
    seen = (j <= i) & ((j >= i - window_size[0]) if window_size[0] >= 0 else True)
    scores = torch.einsum("bthd,bshd->bhts", q, k) * d**-0.5
    return torch.einsum("bhts,bshd->bthd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


def prepare():
    """Lets the library run without a GPU, and its mixture of memories keep the order of tokens."""
    flash = types.ModuleType("flash_attn")
    flash.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    flash.flash_attn_func, flash.flash_attn_varlen_func = attention, None
    sys.modules["flash_attn"] = flash
    make = autotuner.Autotuner.__init__
    autotuner.Autotuner.__init__ = lambda self, fn, names, configs, *a, **k: make(
        self, fn, names, configs[:1], *a, **k)
    sort = torch.Tensor.argsort
    torch.Tensor.argsort = lambda self, dim=-1, descending=False, stable=True: sort(
        self, dim=dim, descending=descending, stable=True)

    import fla.layers.lightnet as lightnet
    import fla.layers.rodimus as rodimus
    import fla.models.modeling_utils as utils
    from fla.ops.attnres.naive import naive_attnres
    from fla.ops.gla import fused_recurrent_gla

    def mixed(query, residuals, rms_weight, output_rms_weight=None, rms_eps=1e-6, **_):
        return naive_attnres(query, residuals, rms_weight, output_rms_weight, rms_eps)

    def lightnet_step(q, k, v, state_v_first=False, **_):
        z = k.logcumsumexp(1)
        decay = torch.cat((z[:, :1], z[:, :-1]), 1) - z
        return fused_recurrent_gla(q=q, k=(k - z).exp(), v=v, gk=decay)[0], (None, z[:, -1:])

    lightnet.fused_recurrent_lightnet = lightnet_step
    rodimus.autocast_to_fp16 = lambda x: x
    import fla.models
    for module in [utils] + [m for name, m in sys.modules.items() if name.startswith("fla.models.")]:
        if hasattr(module, "fused_attnres"):
            module.fused_attnres = mixed
    return fla.models


HYBRID = dict(layers=[1], num_heads=2, num_kv_heads=1, qkv_bias=True, window_size=9, rope_theta=50.0)
SKA = dict(num_heads=4, qk_norm=True, qkv_bias=True, window_size=7)
VARIANTS = {
    "gla_groups": ("GLA", dict(num_heads=4, num_kv_heads=2, expand_k=1, feature_map="relu", use_short_conv=True,
                               clamp_min=-0.5, elementwise_affine=False, tie_word_embeddings=True)),
    "gla_hybrid": ("GLA", dict(num_heads=2, expand_v=2, use_output_gate=False, use_short_conv=True, conv_size=3,
                               attn=HYBRID, num_hidden_layers=3)),
    "gla_residuals": ("GLA", dict(num_heads=2, fuse_norm=True, feature_map="gelu", attnres_block_size=2,
                                  num_hidden_layers=3)),
    "retnet_groups": ("RetNet", dict(num_heads=4, num_kv_heads=2, feature_map="relu", use_output_gate=False,
                                     use_short_conv=True)),
    "retnet_hybrid": ("RetNet", dict(num_heads=2, expand_k=0.5, expand_v=1, elementwise_affine=False, fuse_norm=True,
                                     attn=[dict(layers=[0], num_heads=2), dict(HYBRID, layers=[2])],
                                     num_hidden_layers=3)),
    "linear_attn_hedgehog": ("LinearAttention", dict(num_heads=2, feature_map="hedgehog", norm_feature_map=True)),
    "linear_attn_dpfp": ("LinearAttention", dict(num_heads=4, num_kv_heads=2, feature_map="dpfp", norm_q=True,
                                                 norm_k=True, elementwise_affine=False)),
    "linear_attn_elu": ("LinearAttention", dict(num_heads=2, feature_map="elu", norm_feature_map=True, expand_k=0.5,
                                                expand_v=2)),
    "linear_attn_t2r": ("LinearAttention", dict(num_heads=2, feature_map="t2r", norm_q=True)),
    "linear_attn_powlu": ("LinearAttention", dict(num_heads=2, feature_map="relu", hidden_act="powlu")),
    "linear_attn_tied": ("LinearAttention", dict(num_heads=2, tie_feature_map_qk=True)),
    "delta_net_elu": ("DeltaNet", dict(num_heads=2, expand_k=0.5, expand_v=2, qk_activation="elu", qk_norm="sum",
                                       use_gate=True, allow_neg_eigval=True)),
    "delta_net_plain": ("DeltaNet", dict(num_heads=2, qk_activation="relu", use_beta=False, use_short_conv=False)),
    "delta_net_hybrid": ("DeltaNet", dict(num_heads=2, qk_activation="identity", conv_size=2, attn=HYBRID)),
    "delta_net_sum": ("DeltaNet", dict(num_heads=2, qk_norm="sum")),
    "gated_deltanet_groups": ("GatedDeltaNet", dict(num_heads=2, head_dim=8, num_v_heads=4, expand_v=1,
                                                    allow_neg_eigval=True, output_gate_activation="sigmoid")),
    "gated_deltanet_plain": ("GatedDeltaNet", dict(num_heads=2, head_dim=8, expand_v=1.5, use_gate=False,
                                                   use_short_conv=False, attn=HYBRID, norm_eps=1e-3)),
    "gated_deltaproduct_three": ("GatedDeltaProduct", dict(num_heads=2, head_dim=8, num_householder=3,
                                                           use_forget_gate=True, use_short_conv=False)),
    "gated_deltaproduct_two": ("GatedDeltaProduct", dict(num_heads=2, head_dim=8, expand_v=1, use_output_gate=False,
                                                         allow_neg_eigval=True, use_forget_gate=True,
                                                         num_householder=2)),
    "kda_groups": ("KDA", dict(num_heads=2, head_dim=8, num_v_heads=4, expand_v=2, allow_neg_eigval=True,
                               use_short_conv=False)),
    "kda_bounded": ("KDA", dict(num_heads=2, head_dim=8, safe_gate=True, lower_bound=-5.0, attn=HYBRID,
                                conv_size=3)),
    "hgrn_convolution": ("HGRN", dict(expand_ratio=2, use_short_conv=True, elementwise_affine=False,
                                      num_hidden_layers=3)),
    "hgrn_unbounded": ("HGRN", dict(use_lower_bound=False, attn=HYBRID, num_hidden_layers=3)),
    "hgrn2_convolution": ("HGRN2", dict(expand_ratio=8, use_short_conv=True, num_hidden_layers=3, attn=HYBRID)),
    "hgrn2_unbounded": ("HGRN2", dict(expand_ratio=None, num_heads=2, use_lower_bound=False,
                                      elementwise_affine=False)),
    "gsa_groups": ("GSA", dict(num_heads=4, num_kv_heads=2, num_slots=5, feature_map="t2r", use_short_conv=True,
                               gate_logit_normalizer=4)),
    "gsa_hybrid": ("GSA", dict(num_heads=2, num_slots=None, feature_map="relu", exapnd_k=0.5,
                               elementwise_affine=False, attn=HYBRID)),
    "abc_plain": ("ABC", dict(num_heads=2, num_slots=4, use_short_conv=True, use_rope=False, clamp_min=-1,
                              clamp_max=1)),
    "abc_hybrid": ("ABC", dict(num_heads=2, num_slots=None, exapnd_k=1, elementwise_affine=False, attn=HYBRID)),
    "mom": ("Mom", dict(num_heads=2, head_dim=8)),
    "mom_shared": ("Mom", dict(num_heads=2, head_dim=8, single_kv_proj=True, expand_v=2, num_memories=3, topk=1)),
    "mom_apart": ("Mom", dict(num_heads=2, head_dim=8, shared_mem=False, use_output_gate=False)),
    "lightnet": ("LightNet", dict(expand_ratio=8, gate_low_rank_dim=5)),
    "lightnet_convolution": ("LightNet", dict(expand_ratio=6, num_heads=4, use_short_conv=True,
                                              elementwise_affine=False, gate_low_rank_dim=5)),
    "lightnet_hybrid": ("LightNet", dict(expand_ratio=None, num_heads=2, gate_low_rank_dim=5, attn=HYBRID)),
    "rodimus": ("Rodimus", dict(block_type="rodimus", expand_ratio=8, residual_in_fp32=False)),
    "rodimus_plus": ("Rodimus", dict(expand_ratio=8, ska_attn=SKA, input_gate_low_rank=5, residual_in_fp32=False,
                                     hidden_ratio=4 / 3)),
    "rodimus_hybrid": ("Rodimus", dict(expand_ratio=8, use_short_conv=False, ska_attn=dict(num_heads=2), attn=HYBRID,
                                       num_hidden_layers=3, tie_word_embeddings=False, residual_in_fp32=False)),
    "rwkv6_options": ("RWKV6", dict(num_heads=2, expand_k=1, expand_v=0.5, proj_low_rank_dim=3, gate_low_rank_dim=4,
                                    norm_bias=False, norm_first=False, hidden_act="gelu", tie_word_embeddings=True)),
    "rwkv6_hybrid": ("RWKV6", dict(num_heads=2, proj_low_rank_dim=3, gate_low_rank_dim=4, attn=HYBRID)),
    "rwkv7_options": ("RWKV7", dict(head_dim=8, decay_low_rank_dim=3, gate_low_rank_dim=4, a_low_rank_dim=5,
                                    v_low_rank_dim=2, norm_bias=False, norm_first=False, norm_eps=1e-3,
                                    tie_word_embeddings=True, use_l2warp=False, num_hidden_layers=3)),
    "rwkv7_ranks": ("RWKV7", dict(head_dim=None, num_heads=1, decay_low_rank_dim=None, gate_low_rank_dim=None,
                                  a_low_rank_dim=None, v_low_rank_dim=None, hidden_act="relu", fuse_norm=True)),
    "fox_options": ("ForgettingTransformer", dict(num_heads=4, num_kv_heads=2, qkv_bias=True, qk_norm=True,
                                                  use_output_gate=True, window_size=7)),
    "fox_residuals": ("ForgettingTransformer", dict(num_heads=2, attnres_block_size=4, num_hidden_layers=4)),
    "fla_mamba": ("Mamba", dict(state_size=8)),
    "fla_mamba_options": ("Mamba", dict(state_size=4, use_bias=True, use_conv_bias=False, expand=3, dt_rank=5,
                                        tie_word_embeddings=True, hidden_act="gelu")),
    "fla_mamba2": ("Mamba2", dict(state_size=8, head_dim=8)),
    "fla_mamba2_options": ("Mamba2", dict(state_size=8, head_dim=8, norm_before_gate=True, D_has_hdim=True,
                                          use_bias=True, dt_limit=(0.02, 0.06))),
    "fla_mamba2_normless": ("Mamba2", dict(state_size=8, head_dim=8, rmsnorm=False)),
}


def build(models, name, out, tokens=20):
    from safetensors.torch import save_file
    family, options = VARIANTS[name]
    torch.manual_seed(sum(map(ord, name)))
    base = dict(vocab_size=32, hidden_size=16, num_hidden_layers=2, fuse_norm=False, fuse_cross_entropy=False)
    if "Mamba" not in family:
        base.update(intermediate_size=24, fuse_swiglu=False)
    config = getattr(models, family + "Config")(**(base | options))
    model = getattr(models, family + "ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.2 if p.dim() > 1 else 0.15))
    ids = torch.randint(0, config.vocab_size, (2, tokens))
    with torch.no_grad():
        output = model(ids, labels=ids, use_cache=False)
    expected = {"input_ids": ids.int(), "logits": output.logits.contiguous(), "loss": output.loss.reshape(1)}
    try:
        model(ids, labels=ids, use_cache=False).loss.backward()
        for key, p in model.named_parameters():
            if p.grad is not None:
                expected["grad." + key] = p.grad.contiguous()
    except Exception as error:  # some kernels do not run in the interpreter
        print(f"{name}: no gradients: {error!s:.80}")
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    weights = {key: p.clone().contiguous() for key, p in model.state_dict().items()
               if not (config.tie_word_embeddings and key == "lm_head.weight")}
    save_file(weights, os.path.join(folder, "model.safetensors"))
    save_file(expected, os.path.join(folder, "expected.safetensors"))
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config.to_dict() | {"architectures": [type(model).__name__]}, file, indent=1, default=str)
    print(name, sum(p.numel() for p in model.parameters()), flush=True)


if __name__ == "__main__":
    library = prepare()
    for name in sys.argv[2:] or VARIANTS:
        build(library, name, sys.argv[1])
