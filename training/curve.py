"""Draw the loss curve of a training from its log, as a small SVG."""

import json
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 720, 320, 44
LINES = {"loss": ("#1f77b4", "all weighed tokens"), "recall": ("#d62728", "told before, or a fact")}
SMOOTHED = 10
"""Number of log lines that one point averages."""


def curve(log: Path) -> str:
    """Return an SVG of the losses in nats by millions of tokens. A repeated step counts once."""
    by_step = {line["step"]: line for line in map(json.loads, log.read_text("utf-8").splitlines())}
    lines = [by_step[step] for step in sorted(by_step)]
    groups = [lines[i : i + SMOOTHED] for i in range(0, len(lines), SMOOTHED)]
    last, top = lines[-1]["tokens"], 9.0
    across, down = (WIDTH - 2 * MARGIN) / last, (HEIGHT - 2 * MARGIN) / top
    parts = []
    for level in range(0, int(top) + 1, 3):
        y = HEIGHT - MARGIN - level * down
        parts.append(f'<path d="M{MARGIN} {y:.0f}H{WIDTH - MARGIN}" stroke="#ddd"/>')
        parts.append(f'<text x="{MARGIN - 18}" y="{y + 4:.0f}">{level}</text>')
    for tokens in range(0, last + 1, 5_000_000):
        x = MARGIN + tokens * across
        parts.append(f'<text x="{x:.0f}" y="{HEIGHT - 24}">{tokens // 1_000_000}</text>')
    parts.append(f'<text x="{WIDTH // 2}" y="{HEIGHT - 6}">million tokens</text>')
    for row, (name, (colour, label)) in enumerate(LINES.items()):
        points = [
            (
                MARGIN + group[-1]["tokens"] * across,
                HEIGHT - MARGIN - down * sum(line[name] for line in group) / len(group),
            )
            for group in groups
        ]
        path = " ".join(f"{x:.0f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        place = f'x="{WIDTH - 260}" y="{MARGIN + 18 * row}" fill="{colour}"'
        parts.append(f"<text {place}>{label}, nats</text>")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
    font = ' font-family="sans-serif" font-size="13">'
    return "\n".join([head + font, *parts, "</svg>"]) + "\n"
