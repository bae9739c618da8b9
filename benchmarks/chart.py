"""Draws what report.py has computed, which it reads from stdin; in an environment with matplotlib.

    python benchmarks/chart.py OUTPUT...

Each panel has a bar for each contestant, up to its median, and a line from its least to its most.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot as plt

OURS, THEIRS, RANGE = "#c8553d", "#8aa1b1", "#333333"
COLUMNS = 2
BAR_INCHES, HEAD_INCHES, WIDTH_INCHES = 0.26, 0.9, 14


def draw(axes: Any, panel: dict[str, Any]) -> None:
    bars = panel["bars"][::-1]  # matplotlib counts from below
    names = [bar["name"] for bar in bars]
    medians = [bar["median"] for bar in bars]
    reach = [
        [bar["median"] - bar["low"] for bar in bars],
        [bar["high"] - bar["median"] for bar in bars],
    ]
    colours = [OURS if bar["is_ours"] else THEIRS for bar in bars]
    axes.barh(names, medians, xerr=reach, color=colours, ecolor=RANGE, height=0.7)
    for row, bar in enumerate(bars):
        form = f"{bar['median']:,.0f}" if bar["median"] >= 10 else f"{bar['median']:.2f}"
        axes.annotate(
            form, (bar["high"], row), xytext=(4, 0), textcoords="offset points", va="center", size=8
        )
    axes.set_title(panel["title"], loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(panel["unit"], fontsize=8)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.12, y=0.02)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    panels = json.load(sys.stdin)
    rows = [panels[start : start + COLUMNS] for start in range(0, len(panels), COLUMNS)]
    heights = [HEAD_INCHES + BAR_INCHES * max(len(panel["bars"]) for panel in row) for row in rows]
    figure, grid = plt.subplots(
        len(rows),
        COLUMNS,
        figsize=(WIDTH_INCHES, sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat:
        axes.set_visible(False)
    for line, row in zip(grid, rows, strict=True):
        for axes, panel in zip(line, row, strict=False):
            axes.set_visible(True)
            draw(axes, panel)
    for output in sys.argv[1:]:
        maker = "Creator" if output.endswith(".svg") else "Software"
        figure.savefig(output, dpi=120, metadata={maker: None})  # it would name an address


if __name__ == "__main__":
    main()
