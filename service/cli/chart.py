"""Trajectories as charts of block characters: a bar a token, or a line a layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.text import Text

from deltaw_client import Trajectories
from schemas.trajectories import LayerTrajectory
from service.cli.tables import captioned, number, relation, table

BLOCKS = "▁▂▃▄▅▆▇█"
MOST_WAYS = 2
"""Layers and positions up to which each has a chart with a bar a token; more have a line each."""
BAR_WIDTH = 40
LINE_WIDTH = 60
LONGEST_TEXT = 24


def of_trajectories(answer: Trajectories) -> RenderableType:
    """How far ΔW has gone after each step."""
    if len(answer.layers) <= MOST_WAYS:
        charts = [_bars(answer, way) for way in answer.layers]
        return Group(*charts)
    return _lines(answer)


def _bars(answer: Trajectories, way: LayerTrajectory) -> RenderableType:
    """A bar for each step, as long as ‖ΔW‖ after it."""
    title = f"layer {way.layer}, position {way.position}: ‖ΔW‖ as the context is read"
    head = ["read", "‖ΔW‖", "", "step", "cos to the end"]
    made = table(title, head, ["read", ""])
    longest = max((step.norm for step in way.steps), default=0.0) or 1.0
    for step in way.steps:
        made.add_row(
            _text(answer, step.span),
            number(step.norm),
            Bar(longest, 0, step.norm, width=BAR_WIDTH),
            number(step.step_norm),
            number(step.cosine_to_final, ".2f"),
        )
    return captioned(made, relation(answer) + _noise(way))


def _lines(answer: Trajectories) -> RenderableType:
    """A line for each layer and position; its highest block is its own largest ‖ΔW‖."""
    head = ["layer", "position", "‖ΔW‖ as the context is read", "largest", "at the end"]
    caption = f"each line is relative to its own largest; {relation(answer)}"
    made = table("the way of the weights", head, ["‖ΔW‖ as the context is read"])
    for way in answer.layers:
        norms = [step.norm for step in way.steps]
        made.add_row(
            str(way.layer),
            str(way.position),
            sparkline(norms),
            number(max(norms)),
            number(norms[-1]) + _noise(way),
        )
    return captioned(made, caption)


def sparkline(values: Sequence[float], width: int = LINE_WIDTH) -> str:
    """A character for each value, an eighth of the largest high at least; more than fit are put
    together, of which the largest is shown."""
    count = min(len(values), width)
    edges = [i * len(values) // count for i in range(count + 1)]
    shown = [max(values[a:b]) for a, b in pairwise(edges)]
    largest = max(shown) or 1.0
    return "".join(BLOCKS[min(int(8 * value / largest), 7)] for value in shown)


def _text(answer: Trajectories, span: Sequence[int]) -> Text:
    """What a span of the context spells."""
    text = "".join(token.text for token in answer.tokens.context[span[0] : span[1]])
    cut = text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"
    return Text(repr(cut))


def _noise(way: LayerTrajectory) -> str:
    return " (below noise)" if way.below_noise else ""
