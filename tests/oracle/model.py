"""GPT-2 in float64 NumPy, written to be read from top to bottom.

The names are those of docs/theory.md, "One block".

Row convention: ``y = x @ W + b`` with W stored [in, out], as in transformers' ``Conv1D``.

    h  = r + attn(ln_1(r))         resid_mid
    n  = ln_2(h)                   mlp_in
    p  = n @ W1 + b1               mlp_pre
    f  = gelu_new(p)               mlp_act
    y  = f @ W2 + b2               mlp_out
    r' = h + y                     resid_post

A ``Patch`` changes one block's weights for one run. The changed weights are formed as dense
matrices, and they act on every row of the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Array, read_config, read_weights

HOOK_POINTS = (
    "resid_pre",
    "ln_1_out",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_pre",
    "mlp_act",
    "mlp_out",
    "resid_post",
)


@dataclass(frozen=True, eq=False)
class Patch:
    """The additions to one block's weights and biases for one run; None adds nothing."""

    w_in: Array | None = None  # (d_model, d_mlp), to c_fc.weight
    w_out: Array | None = None  # (d_mlp, d_model), to mlp.c_proj.weight
    output_bias: Array | None = None  # (d_model), to the block's output
    attention_bias: Array | None = None  # (d_model), to the attention's output


@dataclass(frozen=True, eq=False)
class Block:
    """The weights of one block, named as in the checkpoint."""

    ln_1_gain: Array  # (d_model)
    ln_1_bias: Array  # (d_model)
    c_attn: Array  # (d_model, 3 d_model)
    c_attn_bias: Array  # (3 d_model)
    attn_c_proj: Array  # (d_model, d_model)
    attn_c_proj_bias: Array  # (d_model)
    ln_2_gain: Array  # (d_model)
    ln_2_bias: Array  # (d_model)
    c_fc: Array  # (d_model, d_mlp): W1
    c_fc_bias: Array  # (d_mlp): b1
    mlp_c_proj: Array  # (d_mlp, d_model): W2
    mlp_c_proj_bias: Array  # (d_model): b2

    @cached_property
    def frobenius_norm(self) -> float:
        """Frobenius norm of W1."""
        return float(np.sqrt((self.c_fc**2).sum()))

    @cached_property
    def spectral_norm(self) -> float:
        """Largest singular value of W1, by SVD."""
        return float(np.linalg.svd(self.c_fc, compute_uv=False)[0])


@dataclass(frozen=True, eq=False)
class Trace:
    """All values that one run computed; each array has one row per token of the run."""

    points: Mapping[tuple[int, str], Array]  # (layer, hook point) -> (T, width)
    ln_f_out: Array  # (T, d_model)
    unembedding: Array  # (vocab, d_model)

    def __getitem__(self, key: tuple[int, str]) -> Array:
        """The values (T, width) at (layer, hook point)."""
        return self.points[key]

    @cached_property
    def logits(self) -> Array:
        """Next-token logits (T, vocab)."""
        return self.ln_f_out @ self.unembedding.T

    def last_rows(self, count: int) -> "Trace":
        """The same run, with its last ``count`` rows only."""
        points = {key: values[-count:].copy() for key, values in self.points.items()}
        return Trace(points, self.ln_f_out[-count:].copy(), self.unembedding)


class GPT2:
    """A GPT-2 checkpoint folder, stored and computed in float64."""

    def __init__(self, folder: str | Path) -> None:
        config = read_config(Path(folder))
        weights = read_weights(Path(folder))
        activation = config.get("activation_function", "gelu_new")
        if activation not in ("gelu_new", "gelu_pytorch_tanh"):
            raise ValueError(f"this oracle computes gelu_new, not {activation}")
        if config.get("add_cross_attention"):
            raise ValueError("this oracle does not compute cross attention")
        self.n_layers: int = config["n_layer"]
        self.n_heads: int = config["n_head"]
        self.epsilon: float = config.get("layer_norm_epsilon", 1e-5)
        self.scales_attention: bool = config.get("scale_attn_weights", True)
        self.scales_by_layer: bool = config.get("scale_attn_by_inverse_layer_idx", False)
        self.wte = weights["wte.weight"]  # (vocab, d_model)
        self.wpe = weights["wpe.weight"]  # (n_positions, d_model)
        self.ln_f_gain = weights["ln_f.weight"]  # (d_model)
        self.ln_f_bias = weights["ln_f.bias"]  # (d_model)
        tied = config.get("tie_word_embeddings", True)
        self.unembedding = self.wte if tied else weights["lm_head.weight"]  # (vocab, d_model)
        self.blocks = [_block(weights, f"h.{layer}.") for layer in range(self.n_layers)]

    def run(
        self,
        ids: Sequence[int],
        positions: Sequence[int] | None = None,
        visible: NDArray[np.bool_] | None = None,
        patches: Mapping[int, Patch] | None = None,
    ) -> Trace:
        """Run one forward pass.

        Args:
            ids: the tokens (T).
            positions: the row of ``wpe`` that each token takes (T); default 0, 1, 2, …
            visible: (T, T), whether row i may attend to row j; default causal by row order.
            patches: by layer, the additions to the weights; they act on every row.
        """
        rows = len(ids)
        places = range(rows) if positions is None else positions
        if len(places) != rows or rows == 0:
            raise ValueError(f"{rows} ids with {len(places)} positions")
        if min(*ids, *places) < 0:
            raise ValueError("a negative id or position")
        sees = np.tril(np.ones((rows, rows), dtype=bool)) if visible is None else visible
        if sees.shape != (rows, rows) or not sees.any(axis=1).all():
            raise ValueError("visible is (T, T), and every row sees at least one row")

        points: dict[tuple[int, str], Array] = {}
        state = self.wte[list(ids)] + self.wpe[list(places)]  # (T, d_model)
        for layer in range(self.n_layers):
            patch = (patches or {}).get(layer, Patch())
            values = self._run_block(layer, state, sees, patch)
            points.update({(layer, name): value for name, value in values.items()})
            state = values["resid_post"]
        ln_f_out = layer_norm(state, self.ln_f_gain, self.ln_f_bias, self.epsilon)
        return Trace(points, ln_f_out, self.unembedding)

    def _run_block(
        self, layer: int, resid_pre: Array, sees: NDArray[np.bool_], patch: Patch
    ) -> dict[str, Array]:
        """Compute every hook point of one block from its input stream (T, d_model)."""
        block = self.blocks[layer]
        w_in = _plus(block.c_fc, patch.w_in)  # (d_model, d_mlp): W1 + ΔW1
        w_out = _plus(block.mlp_c_proj, patch.w_out)  # (d_mlp, d_model): W2 + ΔW2

        ln_1_out = layer_norm(resid_pre, block.ln_1_gain, block.ln_1_bias, self.epsilon)
        attn_out = self._attend(layer, ln_1_out, sees)  # (T, d_model)
        attn_out = _plus(attn_out, patch.attention_bias)
        resid_mid = resid_pre + attn_out  # h
        mlp_in = layer_norm(resid_mid, block.ln_2_gain, block.ln_2_bias, self.epsilon)  # n
        mlp_pre = mlp_in @ w_in + block.c_fc_bias  # (T, d_mlp)
        mlp_act = gelu_new(mlp_pre)  # (T, d_mlp)
        mlp_out = mlp_act @ w_out + block.mlp_c_proj_bias  # (T, d_model)
        resid_post = _plus(resid_mid + mlp_out, patch.output_bias)
        return {
            "resid_pre": resid_pre,
            "ln_1_out": ln_1_out,
            "attn_out": attn_out,
            "resid_mid": resid_mid,
            "mlp_in": mlp_in,
            "mlp_pre": mlp_pre,
            "mlp_act": mlp_act,
            "mlp_out": mlp_out,
            "resid_post": resid_post,
        }

    def _attend(self, layer: int, x: Array, sees: NDArray[np.bool_]) -> Array:
        """Multi-head attention of one block, (T, d_model) to (T, d_model)."""
        block = self.blocks[layer]
        queries, keys, values = np.split(x @ block.c_attn + block.c_attn_bias, 3, axis=1)
        width = x.shape[1] // self.n_heads
        scale = 1.0
        if self.scales_attention:
            scale /= np.sqrt(width)
        if self.scales_by_layer:
            scale /= layer + 1
        heads = []
        for head in range(self.n_heads):
            part = slice(head * width, (head + 1) * width)
            scores = queries[:, part] @ keys[:, part].T * scale  # (T, T)
            heads.append(softmax(np.where(sees, scores, -np.inf)) @ values[:, part])
        return np.concatenate(heads, axis=1) @ block.attn_c_proj + block.attn_c_proj_bias


def layer_norm(x: Array, gain: Array, bias: Array, epsilon: float) -> Array:
    """(x - mean) / sqrt(variance + epsilon), times gain, plus bias; rows of (T, d_model)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    normalised: Array = centred / np.sqrt(variance + epsilon) * gain + bias
    return normalised


def gelu_new(x: Array) -> Array:
    """GELU by tanh: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x³)))."""
    inner = np.sqrt(2.0 / np.pi) * (x + 0.044715 * x * x * x)
    activated: Array = 0.5 * x * (1.0 + np.tanh(inner))
    return activated


def softmax(scores: Array) -> Array:
    """Softmax exp(s) / sum exp(s) along the last axis."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Array = weights / weights.sum(axis=-1, keepdims=True)
    return shares


def _plus(values: Array, added: Array | None) -> Array:
    """``values + added``, or ``values`` if nothing is added."""
    return values if added is None else values + added


def _block(weights: Mapping[str, Array], prefix: str) -> Block:
    """The block whose tensor names begin with ``prefix`` (``h.5.``)."""
    return Block(
        ln_1_gain=weights[prefix + "ln_1.weight"],
        ln_1_bias=weights[prefix + "ln_1.bias"],
        c_attn=weights[prefix + "attn.c_attn.weight"],
        c_attn_bias=weights[prefix + "attn.c_attn.bias"],
        attn_c_proj=weights[prefix + "attn.c_proj.weight"],
        attn_c_proj_bias=weights[prefix + "attn.c_proj.bias"],
        ln_2_gain=weights[prefix + "ln_2.weight"],
        ln_2_bias=weights[prefix + "ln_2.bias"],
        c_fc=weights[prefix + "mlp.c_fc.weight"],
        c_fc_bias=weights[prefix + "mlp.c_fc.bias"],
        mlp_c_proj=weights[prefix + "mlp.c_proj.weight"],
        mlp_c_proj_bias=weights[prefix + "mlp.c_proj.bias"],
    )
