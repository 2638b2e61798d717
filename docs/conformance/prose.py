"""The sentences of the document."""

from __future__ import annotations

import re
import textwrap

WIDTH = 120
HARD_SPACE = "\u00a0"
CODE = re.compile(r"`[^`\n]*`")


def filled(text: str) -> str:
    """Break the lines of paragraphs and list items, outside code. Tables and headings stay."""
    lines = []
    for line in CODE.sub(lambda code: code[0].replace(" ", HARD_SPACE), text).splitlines():
        indent = "  " if line.startswith("- ") else ""
        if line.startswith(("|", "#")):
            lines.append(line)
        else:
            lines += textwrap.wrap(
                line,
                WIDTH,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            ) or [""]
    return "\n".join(lines).replace(HARD_SPACE, " ") + "\n"


INTRODUCTION = """\
# Conformance

deltaw computes each forward pass with its own code. This page compares that code with an oracle: \
a decoder in float64 NumPy (`tests/oracle/`), which shares no code with the service and agrees \
with transformers to 1e-12. `{command}` measured every entry and wrote this page. {notes}

Measured on {machine}. On another processor the figures differ, within the same bounds.

- **Error**: ‖captured − oracle‖ / ‖oracle‖ of a vector, in the worst position and layer. The \
prompt of the random models has {tokens} tokens; the trained models read "{text}".
- **float32, bfloat16, float16**: the dtype of the resident weights and of the run. The oracle \
reads the weights rounded to that dtype, so an error comes from arithmetic alone. **float64**: \
runs in float64 with float32 weights, as with `precision: "float64"`.
- **Bounds**: float32 {float32}, float64 {float64}, half precision {half} ε ({bfloat16} for \
bfloat16, {float16} for float16), because each layer rounds several times by up to ε/2, and the \
errors add up. At some hook points of trained models the rounding of float32 is amplified. There \
the bound is {peer} times the error of transformers' own float32 forward pass, in its worst \
position at the same hook point and layer, if that is larger. transformers sums in another order, \
so its error is similar but not equal.
- **Planted errors** show what a bound catches. An effect is the relative distance between the \
right vector and the wrong one, in the position and layer where it is least. *Token off*: the \
vector of the token before. *Token changed*: the token before is replaced. *Layer off*: the layer \
before or after; for the logits, the last layer is left out. *Site off*: the nearest hook point \
of the same width in the block; for the logits, the last MLP is left out. *Token changed* skips \
the vectors of the first layer that depend on no other token.

| status | meaning |
|---|---|
| SUPPORTED | float32 or float64, the error is within the bound, and the least effect is at least \
{clear} bounds |
| DEGRADED | the error is within the bound, but the run is in half precision, or an effect is \
below {clear} bounds: good for norms and large differences, while the effect of one token may be \
less than the rounding |
| UNSUPPORTED | refused at load, no such hook point, or the error exceeds the bound |

Equivalence checks of a model in half precision run in float32 or float64. All its other answers \
are computed from vectors in its own dtype, and a difference of two vectors has their error times \
its [cancellation](theory.md#numbers). To measure small differences, serve the model in float32.
"""
ACTIVATIONS = """\
Each cell has the worst status of any hook point, and the error with the largest share of its \
bound. *Least effect* is the smallest effect of any planted error at any hook point. A family's \
row with random weights is the worst of its variants.
"""
COMPARED = """\
In the tables of trained models below, the errors in float32 are at most {ratio} times those of \
transformers' own forward pass. On processors with AVX, deltaw multiplies in oneDNN's packed \
layout, which sums in another order. If a pretrained model has massive activations at the first \
token, as SmolLM2 has, the least effects of *layer off* and *site off* are in that token's stream, \
because most blocks hardly change it.
"""
CHECKS = """\
The relative error of W + ΔW and Δh against the run with context, at every layer and every \
position of the query, with the model's default baseline, in float32 and in float64. *Error* and \
*tolerance* are those of the check with the largest share of its tolerance. *Least control* is \
the smallest error of any wrong patch, and */ tolerance* the smallest ratio of such an error to \
the tolerance of its own check. The errors of controls should be far larger than the tolerance; \
they do not decide the verdict. These two columns leave out vacuous checks.

*Block, by weights*: the second weight carries Δh (`form: "weights"`). *Model*: every block \
patched in sequence; its logits also need KL ≤ 1e-8 (float64: 1e-12) and the same likeliest \
token. The vacuous checks are those of parallel blocks whose ΔW is zero by theorem.
"""
HOOK_POINTS = """\
The figures of the summaries, by hook point. The header of a column gives its status; a cell \
with another status states its own. A plain MLP has no gate, and so no `mlp_pre_linear`. An \
error is that of the layer where it is the largest share of its bound, and *transformers* is the \
error of transformers' own float32 forward pass in that layer.
"""
