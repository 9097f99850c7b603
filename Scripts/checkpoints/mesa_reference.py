"""A small random MesaNet in flash-linear-attention's layout with what its equations give in float64.

usage: mesa_reference.py OUT

The library's own kernel rounds to float16, too coarse to compare with. Writes OUT/{config.json,
model.safetensors, expected.safetensors}: input_ids [2, T], logits [2, T, V], loss, greedy, grad.NAME;
and half.safetensors: input_ids [1, 150] and the last four tokens' logits with that kernel's roundings.
Gradients are those of the exact solution, its adjoint solved like it. Needs torch and safetensors.
"""
import json
import os
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

WIDTH, HEADS, SIZE, LAYERS, HIDDEN, TAPS, STEPS, RIDGE, EPS = 32, 2, 12, 2, 48, 3, 6, 0.5, 1e-5
CONFIG = dict(
    model_type="mesa_net", architectures=["MesaNetForCausalLM"], vocab_size=64, hidden_size=WIDTH,
    num_heads=HEADS, head_dim=SIZE, num_hidden_layers=LAYERS, intermediate_size=HIDDEN,
    conv_size=TAPS, use_output_gate=True, max_cg_step_training=STEPS, max_cg_step_decoding=STEPS,
    lambda_lower_bound=RIDGE, norm_eps=EPS, tie_word_embeddings=True, hidden_act="swish")


def weights():
    r, inner = torch.randn, HEADS * SIZE
    w = {"model.embeddings.weight": r(64, WIDTH) * 0.3, "model.norm.weight": 1 + 0.2 * r(WIDTH)}
    for i in range(LAYERS):
        p, a = f"model.layers.{i}.", f"model.layers.{i}.attn."
        for name in ("attn_norm", "mlp_norm"):
            w[p + name + ".weight"] = 1 + 0.2 * r(WIDTH)
        w[p + "mlp.gate_proj.weight"] = r(HIDDEN, WIDTH) * 0.2
        w[p + "mlp.up_proj.weight"] = r(HIDDEN, WIDTH) * 0.2
        w[p + "mlp.down_proj.weight"] = r(WIDTH, HIDDEN) * 0.2
        for name in "qkvg":
            w[a + name + "_proj.weight"] = r(inner, WIDTH) * 0.3
        w[a + "o_proj.weight"] = r(WIDTH, inner) * 0.3
        for name in "ab":
            w[a + name + "_proj.weight"], w[a + name + "_proj.bias"] = r(HEADS, WIDTH) * 0.3, r(HEADS)
        for name in "qk":
            w[a + name + "_conv1d.weight"] = r(inner, 1, TAPS) * 0.5
        w[a + "lambda_params"], w[a + "o_norm.weight"] = r(inner), 1 + 0.2 * r(SIZE)
    return w


def conjugate_gradients(A, b):
    return solve(lambda p: torch.einsum("...ij,...j->...i", A, p), b)


def solve(apply, b):
    x, r, p, size = torch.zeros_like(b), b, b, (b * b).sum(-1)
    for _ in range(STEPS):
        image = apply(p)
        alpha = size / ((p * image).sum(-1) + 1e-5)
        x, r = x + alpha[..., None] * p, r - alpha[..., None] * image
        after = (r * r).sum(-1)
        p, size = r + (after / (size + 1e-5))[..., None] * p, after
    return x


class Solve(torch.autograd.Function):
    @staticmethod
    def forward(context, A, b):
        x = conjugate_gradients(A, b)
        context.save_for_backward(A, x)
        return x

    @staticmethod
    def backward(context, dx):
        A, x = context.saved_tensors
        y = conjugate_gradients(A, dx)
        return -y[..., :, None] * x[..., None, :], y


def rms(x, w):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * w


def rounded(x, to=torch.float16):
    return x.to(to).to(x.dtype)


def half_chunks(q, k, v, g, beta, ridge):
    """What the kernel computes, chunk by chunk: q, k, v [B, H, T, K], g and beta [B, H, T]."""
    q, k, out = rounded(q), rounded(k), []
    H = G = torch.zeros(*q.shape[:2], SIZE, SIZE)
    for at in range(0, q.shape[2], 64):
        q_, k_, v_ = (t[:, :, at:at + 64] for t in (q, k, v))
        c, b_ = g[:, :, at:at + 64].cumsum(-1), beta[:, :, at:at + 64]
        m = torch.tril(torch.exp(c[..., :, None] - c[..., None, :]) * b_[..., None, :])
        reach = torch.exp(c)[..., None]
        x = solve(lambda p: rounded((rounded(p) @ k_.mT) * m) @ k_ + (p * reach) @ H + p * ridge, q_)
        near = ((rounded(x) @ k_.mT) * m) @ v_
        out.append(near + rounded(x * reach, torch.bfloat16) @ rounded(G, torch.bfloat16))
        last = c[..., -1, None, None]
        written = rounded(k_ * torch.exp(last - c[..., None]) * b_[..., None]).mT
        H, G = H * torch.exp(last) + written @ k_, G * torch.exp(last) + written @ v_
    return torch.cat(out, 2)


def mixer(x, w, a, half=False):
    (B, T, _), heads = x.shape, (HEADS, SIZE)
    line = lambda n: x @ w[a + n + "_proj.weight"].T

    def stream(n):
        y = F.pad(line(n).transpose(1, 2), (TAPS - 1, 0))
        y = F.silu(F.conv1d(y, w[a + n + "_conv1d.weight"], groups=y.shape[1])).transpose(1, 2)
        y = y.reshape(B, T, *heads)
        return y / torch.sqrt((y * y).sum(-1, keepdim=True) + 1e-6)

    q, k, v = stream("q"), stream("k"), line("v").view(B, T, *heads)
    beta = torch.sigmoid(line("b") + w[a + "b_proj.bias"])
    decay = torch.sigmoid(line("a") + w[a + "a_proj.bias"])
    ridge = torch.diag_embed((F.softplus(w[a + "lambda_params"]) + RIDGE).view(heads))
    H = G = torch.zeros(B, HEADS, SIZE, SIZE, dtype=x.dtype)
    out = []
    if half:
        diagonal = torch.diagonal(ridge, dim1=-2, dim2=-1)[:, None]
        y = half_chunks(*(t.transpose(1, 2) for t in (q, k, v, torch.log(decay), beta)), diagonal)
        out = list(y.unbind(2))
    for t in range(0 if half else T):
        e, kb = decay[:, t, :, None, None], k[:, t] * beta[:, t, :, None]
        H = H * e + kb[..., None] * k[:, t, :, None, :]
        G = G * e + kb[..., None] * v[:, t, :, None, :]
        out.append(torch.einsum("...ij,...i->...j", G, Solve.apply(H + ridge, q[:, t])))
    y = rms(torch.stack(out, 1), w[a + "o_norm.weight"]) * F.silu(line("g").view(B, T, *heads))
    return y.reshape(B, T, -1) @ w[a + "o_proj.weight"].T


def logits(ids, w, half=False):
    x = w["model.embeddings.weight"][ids]
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        x = x + mixer(rms(x, w[p + "attn_norm.weight"]), w, p + "attn.", half)
        y = rms(x, w[p + "mlp_norm.weight"])
        gate = F.silu(y @ w[p + "mlp.gate_proj.weight"].T)
        x = x + (gate * (y @ w[p + "mlp.up_proj.weight"].T)) @ w[p + "mlp.down_proj.weight"].T
    return rms(x, w["model.norm.weight"]) @ w["model.embeddings.weight"].T


if __name__ == "__main__":
    torch.manual_seed(5)
    os.makedirs(sys.argv[1], exist_ok=True)
    stored = weights()
    w = {name: value.double().requires_grad_(True) for name, value in stored.items()}
    ids = torch.randint(0, 64, (2, 40))
    y = logits(ids, w)
    loss = F.cross_entropy(y[:, :-1].reshape(-1, 64), ids[:, 1:].reshape(-1))
    loss.backward()
    row = ids[:1]
    with torch.no_grad():
        for _ in range(8):
            row = torch.cat((row, logits(row, w)[:, -1:].argmax(-1)), 1)
    expected = {"input_ids": ids.int(), "logits": y.detach().float(), "loss": loss.detach().float()[None],
                "greedy": row[0, 40:].int().contiguous()}
    expected |= {"grad." + name: value.grad.float() for name, value in w.items()}
    json.dump(CONFIG, open(sys.argv[1] + "/config.json", "w"), indent=2, sort_keys=True)
    save_file(stored, sys.argv[1] + "/model.safetensors")
    save_file(expected, sys.argv[1] + "/expected.safetensors")
    long = torch.randint(0, 64, (1, 150))
    with torch.no_grad():
        last = logits(long, stored, half=True)[:, -4:].contiguous()
    save_file({"input_ids": long.int(), "logits": last}, sys.argv[1] + "/half.safetensors")
