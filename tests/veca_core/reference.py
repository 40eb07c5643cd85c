"""The network's equations written out plainly, in float64, loop by loop: what the fast implementation must agree with.

Nothing of veca_core is used here. Weights carry the names of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def official_checkpoint(seed: int = 0, **changed: Any) -> dict[str, Any]:
    """A checkpoint as it is published, with random weights large enough that every part of the network matters."""
    config = {
        "hidden_dim": 48, "num_layers": 2, "num_heads": 3, "mlp_ratio": 2.66667, "patch_size": 16, "in_channels": 3,
        "num_query_tokens": 64, "nested_chunk_size": 8, "patch_embed_use_ln": False, "rope_p_zero_freqs": 0.125,
        "rope_zero_freqs_from": "low", "distill_output_dim": None, **changed,
    }  # fmt: skip
    dim, layers, patch = config["hidden_dim"], config["num_layers"], config["patch_size"]
    hidden = int(dim * config["mlp_ratio"])
    chunk = config["nested_chunk_size"]
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, around: float = 0.0, spread: float = 1.0) -> Tensor:
        return around + spread * torch.randn(shape, generator=generator)

    def linear(name: str, out: int, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": normal(out, width, spread=width**-0.5), f"{name}.bias": normal(out, spread=0.1)}

    def norm(name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": normal(width, around=1, spread=0.1), f"{name}.bias": normal(width, spread=0.1)}

    pixels = config["in_channels"] * patch**2
    state = linear("patch_embed.proj", dim, pixels)
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].view(dim, -1, patch, patch)
    if config["patch_embed_use_ln"]:
        state |= norm("patch_embed.norm", dim)
    for i in range(layers):
        state |= norm(f"blocks.{i}.norm_attn", dim) | norm(f"blocks.{i}.norm_ffn", dim)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state |= linear(f"blocks.{i}.attn.{name}", dim, dim)
        state |= linear(f"blocks.{i}.fc1", 2 * hidden, dim) | linear(f"blocks.{i}.fc2", dim, hidden)
    state |= norm("final_norm", dim)
    if config["distill_output_dim"]:
        state |= linear("output_proj", config["distill_output_dim"], dim)
    for i in range(layers - 1):
        state |= linear(f"pos_linears.{i}", 2, dim)
    state["pos_alpha"] = normal(layers - 1, around=0.3, spread=0.1)
    for j in range(config["num_query_tokens"] // chunk):
        state[f"query_token_chunks.{j}"] = normal(1, chunk, dim)
        state[f"qcoord_chunks.{j}"] = normal(1, chunk, 2)
    return {"student": state, "config": config}


def plain_forward(checkpoint: Mapping[str, Any], image: Tensor, budget: int) -> tuple[Array, Array]:
    """Cores (C, D) and patches (N, D) of one image (bands, H, W), after the final norm and projection."""
    state = {k.removeprefix("module."): v.double().numpy() for k, v in checkpoint["student"].items()}
    config = checkpoint["config"]
    chunks = config["num_query_tokens"] // config["nested_chunk_size"]
    bank = np.concatenate([state[f"query_token_chunks.{j}"][0] for j in range(chunks)])[:budget]
    rho = np.concatenate([state[f"qcoord_chunks.{j}"][0] for j in range(chunks)])[:budget]
    patches, places = _embed(state, image.double().numpy(), config["patch_size"])
    if config["patch_embed_use_ln"]:
        patches = _norm(state, "patch_embed.norm", patches)
    periods = _periods(config["hidden_dim"] // config["num_heads"], config)
    for i in range(config["num_layers"]):
        if i > 0:
            rho = rho + state["pos_alpha"][i - 1] * _linear(state, f"pos_linears.{i - 1}", bank)
        bank, patches = _block(state, i, bank, patches, np.tanh(rho), places, periods, config["num_heads"])
    tokens = _norm(state, "final_norm", np.concatenate([bank, patches]))
    if config["distill_output_dim"]:
        tokens = _linear(state, "output_proj", tokens)
    return tokens[:budget], tokens[budget:]


def _embed(state: Mapping[str, Array], image: Array, patch: int) -> tuple[Array, Array]:
    """Tokens (N, D) and their centres (N, 2) as (x, y), patch by patch."""
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    tokens, places = [], []
    for i in range(rows):
        for j in range(columns):
            pixels = image[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            tokens.append(weight.reshape(len(weight), -1) @ pixels.ravel() + bias)
            places.append((2 * (j + 0.5) / columns - 1, 2 * (i + 0.5) / rows - 1))
    return np.array(tokens), np.array(places)


def _periods(width: int, config: Mapping[str, Any]) -> list[float]:
    """One for each of the head's width / 4 frequencies; the lowest are switched off."""
    count = width // 4
    periods = [100 ** (2 * j / (width / 2)) for j in range(count)]
    for k in range(round(config["rope_p_zero_freqs"] * count)):
        periods[k if config["rope_zero_freqs_from"] == "high" else count - 1 - k] = math.inf
    return periods


def _block(
    state: Mapping[str, Array],
    i: int,
    bank: Array,
    patches: Array,
    core_places: Array,
    patch_places: Array,
    periods: list[float],
    heads: int,
) -> tuple[Array, Array]:
    x = _norm(state, f"blocks.{i}.norm_attn", np.concatenate([bank, patches]))
    places = np.concatenate([core_places, patch_places])
    q, k, v = (_linear(state, f"blocks.{i}.attn.{name}_proj", x) for name in "qkv")
    count, width = len(bank), x.shape[1] // heads
    mixed = np.zeros_like(x)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        q_h = np.array([_turned(t, place, periods) for t, place in zip(q[:, part], places, strict=True)])
        k_h = np.array([_turned(t, place, periods) for t, place in zip(k[:, part], places, strict=True)])
        for token in range(len(x)):
            seen = len(x) if token < count else count  # cores see everything, patches see the cores
            mixed[token, part] = _softmax(k_h[:seen] @ q_h[token] / math.sqrt(width)) @ v[:seen, part]
    y = np.concatenate([bank, patches]) + _linear(state, f"blocks.{i}.attn.out_proj", mixed)
    u, gate = np.split(_linear(state, f"blocks.{i}.fc1", _norm(state, f"blocks.{i}.norm_ffn", y)), 2, axis=1)
    y = y + _linear(state, f"blocks.{i}.fc2", u / (1 + np.exp(-u)) * gate)
    return y[:count], y[count:]


def _turned(token: Array, place: Array, periods: list[float]) -> Array:
    """One head of one token: pair j of the first half turns with x, of the second half with y."""
    out = token.copy()
    for axis in (0, 1):
        for j, period in enumerate(periods):
            angle = 2 * math.pi * place[axis] / period
            even = axis * 2 * len(periods) + 2 * j
            a, b = token[even], token[even + 1]
            out[even] = a * math.cos(angle) - b * math.sin(angle)
            out[even + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out


def _softmax(scores: Array) -> Array:
    e = np.exp(scores - scores.max())
    return np.asarray(e / e.sum())


def _linear(state: Mapping[str, Array], name: str, x: Array) -> Array:
    return np.asarray(x @ state[f"{name}.weight"].T + state[f"{name}.bias"])


def _norm(state: Mapping[str, Array], name: str, x: Array) -> Array:
    centred = x - x.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    return np.asarray(scaled * state[f"{name}.weight"] + state[f"{name}.bias"])
