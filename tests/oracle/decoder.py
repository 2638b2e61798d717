"""A decoder of any served family in float64 NumPy, written to be read from top to bottom.

The names are those of docs/theory.md, "One block".

Row convention: ``y = x @ W + b`` with W [in, out], also where a file stores [out, in]. The first
weights of a gated MLP stand side by side, ``W1 = [W_gate | W_up]``.

    h  = r + post_attn(attn(pre_attn(r)))    resid_mid
    n  = pre_mlp(h); parallel: pre_mlp(r)    mlp_in
    p  = n @ W1 + b1                         mlp_pre, and mlp_pre_linear for the half W_up
    f  = act(p); gated: act(p_gate) * p_up   mlp_act
    m  = post_mlp(f @ W2 + b2)               mlp_out
    r' = h + m                               resid_post

A ``Patch`` changes one block's weights for one run. The changed weights are formed as dense
matrices, and they act on every row of the run.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Array, read_config, read_weights
from .rotary import rotary_tables

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
"""Hook points of every family. A gated MLP has ``mlp_pre_linear`` as well.

A trace also has ``mlp_first``, the output of all first weights with their biases (gate and up side
by side), and ``mlp_second``, the output of the second weight, before a norm that may follow.
"""


@dataclass(frozen=True, eq=False)
class Patch:
    """The changes to one block's weights and biases for one run; None changes nothing."""

    w_in: Array | None = None  # (d_model, d_first), added to W1
    w_out: Array | None = None  # (d_mlp, d_model), added to W2
    output_bias: Array | None = None  # (d_model), added to the block's output
    attention_bias: Array | None = None  # (d_model), added to attn_out
    gain: Array | None = None  # (d_model), in place of the gain of the norm after the MLP


@dataclass(frozen=True, eq=False)
class Norm:
    """A layer norm or an RMS norm."""

    gain: Array  # (width)
    bias: Array  # (width)
    centred: bool  # whether the mean is taken away first: a layer norm
    epsilon: float

    def __call__(self, x: Array, gain: Array | None = None) -> Array:
        """Normalise rows (…, width), with another gain where one is given."""
        gain = self.gain if gain is None else gain
        if self.centred:
            return layer_norm(x, gain, self.bias, self.epsilon)
        scaled: Array = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.epsilon) * gain
        return scaled


@dataclass(frozen=True, eq=False)
class Affine:
    """A weight [in, out] and a bias (out), zero where the checkpoint has none."""

    weight: Array
    bias: Array

    def __call__(self, x: Array) -> Array:
        """Rows (T, in) to (T, out)."""
        return x @ self.weight + self.bias


@dataclass(frozen=True, eq=False)
class Block:
    """The weights of one block."""

    pre_attn: Norm
    queries: Affine  # (d_model, n_heads d_head)
    keys: Affine  # (d_model, n_kv_heads d_head)
    values: Affine  # (d_model, n_kv_heads d_head)
    q_norm: Norm | None  # (d_head)
    k_norm: Norm | None  # (d_head)
    attn_out: Affine  # (n_heads d_head, d_model)
    post_attn: Norm | None
    pre_mlp: Norm
    first: Affine  # (d_model, d_first): W1 and b1; d_first is 2 d_mlp where the MLP is gated
    second: Affine  # (d_mlp, d_model): W2 and b2
    post_mlp: Norm | None
    kind: str  # the layer's type in transformers: sliding_attention or full_attention
    window: int | None  # a row sees keys at less than this distance in positions
    scale: float  # of the scores

    @property
    def w_in(self) -> Array:
        """W1 (d_model, d_first)."""
        return self.first.weight

    @cached_property
    def frobenius_norm(self) -> float:
        """Frobenius norm of W1."""
        return float(np.sqrt((self.w_in**2).sum()))

    @cached_property
    def spectral_norm(self) -> float:
        """Largest singular value of W1, by SVD."""
        return float(np.linalg.svd(self.w_in, compute_uv=False)[0])


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


@dataclass(frozen=True)
class Family:
    """The names of a family's tensors, those of a block after the prefix ``block``."""

    embedding: str
    block: str
    pre_attn: str
    qkv: tuple[str, ...]  # three names, or one that holds all
    attn_out: str
    pre_mlp: str
    first: tuple[str, ...]  # the gate comes first
    second: str
    final_norm: str
    head: str = "lm_head"
    positions: str | None = None  # a table of learned positions
    offset: int = 0  # its first row that is a position
    post_attn: str | None = None
    post_mlp: str | None = None
    tied: bool = False  # whether the head is the embedding where config.json does not say
    stored_in_out: bool = False  # Conv1D, where nn.Linear stores [out, in]
    rms: bool = True
    gain_offset: float = 0.0  # what the stored gain of a norm lacks
    qkv_by_head: bool = False  # one name: queries, keys, values in turn for each head
    scales_embedding: bool = False  # by √d_model, rounded to float32


_LLAMA = Family(
    embedding="model.embed_tokens",
    block="model.layers.{}.",
    pre_attn="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attn_out="self_attn.o_proj",
    pre_mlp="post_attention_layernorm",
    first=("mlp.gate_proj", "mlp.up_proj"),
    second="mlp.down_proj",
    final_norm="model.norm",
)
FAMILIES = {
    "gpt2": Family(
        embedding="wte",
        block="h.{}.",
        pre_attn="ln_1",
        qkv=("attn.c_attn",),
        attn_out="attn.c_proj",
        pre_mlp="ln_2",
        first=("mlp.c_fc",),
        second="mlp.c_proj",
        final_norm="ln_f",
        positions="wpe",
        tied=True,
        stored_in_out=True,
        rms=False,
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma3_text": Family(
        **{
            **vars(_LLAMA),
            "pre_mlp": "pre_feedforward_layernorm",
            "post_attn": "post_attention_layernorm",
            "post_mlp": "post_feedforward_layernorm",
            "tied": True,
            "gain_offset": 1.0,
            "scales_embedding": True,
        }
    ),
    "gpt_neox": Family(
        embedding="gpt_neox.embed_in",
        block="gpt_neox.layers.{}.",
        pre_attn="input_layernorm",
        qkv=("attention.query_key_value",),
        attn_out="attention.dense",
        pre_mlp="post_attention_layernorm",
        first=("mlp.dense_h_to_4h",),
        second="mlp.dense_4h_to_h",
        final_norm="gpt_neox.final_layer_norm",
        head="embed_out",
        rms=False,
        qkv_by_head=True,
    ),
    "opt": Family(
        embedding="model.decoder.embed_tokens",
        block="model.decoder.layers.{}.",
        pre_attn="self_attn_layer_norm",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        attn_out="self_attn.out_proj",
        pre_mlp="final_layer_norm",
        first=("fc1",),
        second="fc2",
        final_norm="model.decoder.final_layer_norm",
        positions="model.decoder.embed_positions",
        offset=2,
        tied=True,
        rms=False,
    ),
}
"""By ``model_type``."""


class Decoder:
    """A checkpoint folder of any served family, stored and computed in float64."""

    def __init__(self, folder: str | Path) -> None:
        self.config = config = read_config(Path(folder))
        self._weights = weights = read_weights(Path(folder))
        self.family = family = FAMILIES[config["model_type"]]
        if config.get("add_cross_attention"):
            raise ValueError("this oracle does not compute cross attention")
        self.n_layers: int = self._setting("num_hidden_layers", "n_layer")
        self.n_heads: int = self._setting("num_attention_heads", "n_head")
        self.d_head: int = (
            config.get("head_dim") or self._setting("hidden_size", "n_embd") // self.n_heads
        )
        self.epsilon: float = self._setting(
            "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", default=1e-5
        )
        self.activation = ACTIVATIONS[
            self._setting(
                "hidden_act", "hidden_activation", "activation_function", default="gelu_new"
            )
        ]
        self.gated = len(family.first) == 2
        self.parallel = config["model_type"] == "gpt_neox" and config.get(
            "use_parallel_residual", True
        )
        self.hook_points = HOOK_POINTS + ("mlp_pre_linear",) * self.gated
        self.embedding = weights[family.embedding + ".weight"]  # (vocab, d_model)
        self.positions = (  # (n_positions, d_model)
            weights[family.positions + ".weight"][family.offset :] if family.positions else None
        )
        self.embedding_scale = 1.0
        if family.scales_embedding:
            self.embedding_scale = float(np.float32(math.sqrt(self.embedding.shape[1])))
        tied = config.get("tie_word_embeddings", family.tied)
        self.unembedding = (  # (vocab, d_model)
            self.embedding if tied else weights[family.head + ".weight"]
        )
        self.final_norm = self._norm(family.final_norm, self.embedding.shape[1])
        self.rotary = rotary_tables(Path(folder))
        self.blocks = [self._block(layer) for layer in range(self.n_layers)]

    def run(
        self,
        ids: Sequence[int],
        positions: Sequence[int] | None = None,
        visible: NDArray[np.bool_] | None = None,
        patches: Mapping[int, Patch] | None = None,
        depth: int | None = None,
    ) -> Trace:
        """Run one forward pass.

        Args:
            ids: the tokens (T).
            positions: the position of each token (T); default 0, 1, 2, …
            visible: (T, T), whether row i may attend to row j; default causal by row order. A
                layer's window narrows it further, by the distance in positions.
            patches: by layer, the changes to the weights; they act on every row.
            depth: number of layers to run; default all.
        """
        rows = len(ids)
        places = np.array(range(rows) if positions is None else positions)
        if len(places) != rows or rows == 0:
            raise ValueError(f"{rows} ids with {len(places)} positions")
        if min(*ids, *places) < 0:
            raise ValueError("a negative id or position")
        sees = np.tril(np.ones((rows, rows), dtype=bool)) if visible is None else visible
        if sees.shape != (rows, rows) or not sees.any(axis=1).all():
            raise ValueError("visible is (T, T), and every row sees at least one row")

        points: dict[tuple[int, str], Array] = {}
        state = self.embedding[list(ids)] * self.embedding_scale  # (T, d_model)
        if self.positions is not None:
            state = state + self.positions[places]
        for layer in range(self.n_layers if depth is None else depth):
            patch = (patches or {}).get(layer, Patch())
            values = self._run_block(layer, state, places, sees, patch)
            points.update({(layer, name): value for name, value in values.items()})
            state = values["resid_post"]
        return Trace(points, self.final_norm(state), self.unembedding)

    def second_half(
        self, layer: int, resid_mid: Array, mlp_in: Array, patch: Patch
    ) -> dict[str, Array]:
        """Compute the MLP and the block's output under a patch, from h and n (T, d_model)."""
        block = self.blocks[layer]
        first = mlp_in @ _plus(block.first.weight, patch.w_in) + block.first.bias
        if self.gated:
            gate, up = np.split(first, 2, axis=-1)
            pre = {"mlp_pre": gate, "mlp_pre_linear": up}
            act = self.activation(gate) * up
        else:
            pre = {"mlp_pre": first}
            act = self.activation(first)
        second = act @ _plus(block.second.weight, patch.w_out) + block.second.bias
        mlp_out = second if block.post_mlp is None else block.post_mlp(second, patch.gain)
        return {
            "mlp_first": first,
            **pre,
            "mlp_act": act,
            "mlp_second": second,
            "mlp_out": mlp_out,
            "resid_post": _plus(resid_mid + mlp_out, patch.output_bias),
        }

    def _run_block(
        self, layer: int, resid_pre: Array, places: Array, sees: NDArray[np.bool_], patch: Patch
    ) -> dict[str, Array]:
        """Compute every hook point of one block from its input stream (T, d_model)."""
        block = self.blocks[layer]
        ln_1_out = block.pre_attn(resid_pre)
        attn_out = self._attend(block, ln_1_out, places, sees)  # (T, d_model)
        if block.post_attn is not None:
            attn_out = block.post_attn(attn_out)
        attn_out = _plus(attn_out, patch.attention_bias)
        resid_mid = resid_pre + attn_out  # h
        mlp_in = block.pre_mlp(resid_pre if self.parallel else resid_mid)  # n
        return {
            "resid_pre": resid_pre,
            "ln_1_out": ln_1_out,
            "attn_out": attn_out,
            "resid_mid": resid_mid,
            "mlp_in": mlp_in,
            **self.second_half(layer, resid_mid, mlp_in, patch),
        }

    def _attend(self, block: Block, x: Array, places: Array, sees: NDArray[np.bool_]) -> Array:
        """Multi-head attention of one block, (T, d_model) to (T, d_model)."""
        queries, keys, values = (  # (T, heads, d_head)
            project(x).reshape(len(x), -1, self.d_head)
            for project in (block.queries, block.keys, block.values)
        )
        if block.q_norm is not None and block.k_norm is not None:
            queries, keys = block.q_norm(queries), block.k_norm(keys)
        if self.rotary is not None:
            cos, sin = self.rotary(places.tolist(), block.kind)
            queries, keys = turned(queries, cos, sin), turned(keys, cos, sin)
        if block.window is not None:
            sees = sees & (places[:, None] - places[None, :] < block.window)
        shared = self.n_heads // keys.shape[1]  # heads of queries for each of keys and values
        heads = []
        for head in range(self.n_heads):
            scores = queries[:, head] @ keys[:, head // shared].T * block.scale  # (T, T)
            shares = softmax(np.where(sees, scores, -np.inf))
            heads.append(shares @ values[:, head // shared])
        return block.attn_out(np.concatenate(heads, axis=1))

    def _setting(self, *names: str, default: Any = None) -> Any:
        """The first of these settings that config.json has."""
        return next((self.config[name] for name in names if name in self.config), default)

    def _norm(self, name: str, width: int) -> Norm:
        """The norm of this name; one without tensors has gain 1 and bias 0."""
        stored = self._weights.get(name + ".weight", np.ones(width))
        bias = self._weights.get(name + ".bias", np.zeros(width))
        return Norm(stored + self.family.gain_offset, bias, not self.family.rms, self.epsilon)

    def _affine(self, *names: str) -> Affine:
        """The affine maps of these names, side by side."""
        weights, biases = [], []
        for name in names:
            stored = self._weights[name + ".weight"]
            weights.append(stored if self.family.stored_in_out else stored.T)
            biases.append(self._weights.get(name + ".bias", np.zeros(weights[-1].shape[1])))
        return Affine(np.concatenate(weights, axis=1), np.concatenate(biases))

    def _queries_keys_values(self, prefix: str) -> list[Affine]:
        """The three projections of a block, from three tensors or from one."""
        names = [prefix + name for name in self.family.qkv]
        if len(names) == 3:
            return [self._affine(name) for name in names]
        fused = self._affine(*names)
        by_head, axis = (self.n_heads, 3, self.d_head), 1
        if not self.family.qkv_by_head:
            by_head, axis = (3, self.n_heads, self.d_head), 0
        width = self.n_heads * self.d_head
        return [
            Affine(
                fused.weight.reshape(-1, *by_head).take(i, axis + 1).reshape(-1, width),
                fused.bias.reshape(by_head).take(i, axis).reshape(width),
            )
            for i in range(3)
        ]

    def _block(self, layer: int) -> Block:
        """The weights and settings of one block."""
        family, prefix = self.family, self.family.block.format(layer)
        kind = _layer_type(self.config, layer)
        width = self.embedding.shape[1]
        queries, keys, values = self._queries_keys_values(prefix)
        q_norm, k_norm = (
            self._norm(f"{prefix}self_attn.{part}_norm", self.d_head)
            if f"{prefix}self_attn.{part}_norm.weight" in self._weights
            else None
            for part in "qk"
        )
        post_attn, post_mlp = (
            self._norm(prefix + name, width) if name else None
            for name in (family.post_attn, family.post_mlp)
        )
        return Block(
            pre_attn=self._norm(prefix + family.pre_attn, width),
            queries=queries,
            keys=keys,
            values=values,
            q_norm=q_norm,
            k_norm=k_norm,
            attn_out=self._affine(prefix + family.attn_out),
            post_attn=post_attn,
            pre_mlp=self._norm(prefix + family.pre_mlp, width),
            first=self._affine(*(prefix + name for name in family.first)),
            second=self._affine(prefix + family.second),
            post_mlp=post_mlp,
            kind=kind,
            window=self.config["sliding_window"] if kind == "sliding_attention" else None,
            scale=self._scale(layer),
        )

    def _scale(self, layer: int) -> float:
        """The factor of the scores."""
        scale = 1.0 / math.sqrt(self.config.get("query_pre_attn_scalar", self.d_head))
        if not self.config.get("scale_attn_weights", True):
            scale = 1.0
        if self.config.get("scale_attn_by_inverse_layer_idx", False):
            scale /= layer + 1
        return scale


def _layer_type(config: Mapping[str, Any], layer: int) -> str:
    """The type of a layer in transformers; all of Mistral's have the window, if there is one."""
    if config.get("layer_types"):
        return str(config["layer_types"][layer])
    if config.get("use_sliding_window") or config["model_type"] == "gemma3_text":
        raise ValueError("this oracle reads layer_types from config.json")
    windows = config["model_type"] == "mistral" and config.get("sliding_window") is not None
    return "sliding_attention" if windows else "full_attention"


def turned(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate the first columns of every head (T, heads, d_head), as many as cos and sin (T, w)."""
    width = cos.shape[1]
    first, second = np.split(x[..., :width], 2, axis=-1)
    swapped = np.concatenate((-second, first), axis=-1)
    rotated = x[..., :width] * cos[:, None] + swapped * sin[:, None]
    return np.concatenate((rotated, x[..., width:]), axis=-1)


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


def gelu(x: Array) -> Array:
    """GELU by the error function: x/2 (1 + erf(x / sqrt(2)))."""
    activated: Array = 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))
    return activated


def silu(x: Array) -> Array:
    """x / (1 + exp(-x))."""
    activated: Array = x / (1.0 + np.exp(-x))
    return activated


def relu(x: Array) -> Array:
    """max(x, 0)."""
    activated: Array = np.maximum(x, 0.0)
    return activated


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": gelu_new,
    "gelu_pytorch_tanh": gelu_new,
    "relu": relu,
    "silu": silu,
}


def softmax(scores: Array) -> Array:
    """Softmax exp(s) / sum exp(s) along the last axis."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Array = weights / weights.sum(axis=-1, keepdims=True)
    return shares


def _plus(values: Array, added: Array | None) -> Array:
    """``values + added``, or ``values`` if nothing is added."""
    return values if added is None else values + added
