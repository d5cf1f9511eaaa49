"""The curves of a training as a picture."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
CURVES = "curves.png"
PANELS = ({"loss": "loss", "eval_loss": "loss, held out"}, {"grad_norm": "gradient norm"}, {"learning_rate": "rate"})
"""What is drawn, from top to bottom, and what it is called; those of one panel share its axis."""


def draw_curves(log: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw losses, gradient norms and rates over the steps into a PNG.

    Args:
        log: entries as `Trainer` keeps them: a `step`, and numbers by name.
        path: where the picture goes.

    Returns:
        Whether there is one now: not without matplotlib, nor where nothing was logged.
    """
    panels = [names for names in PANELS if any(points_of(log, name) for name in names)]
    if not panels:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("%s is not drawn: pip install 'splitlearn-core[train]' brings matplotlib", path.name)
        return False
    figure = Figure(figsize=(8, 2.2 * len(panels)), layout="constrained")
    for axes, names in zip(figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0], panels, strict=True):
        for name, label in names.items():
            if points := points_of(log, name):
                axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else "", label=label)
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    axes.set_xlabel("updates")
    figure.savefig(path, dpi=120)
    return True


def points_of(log: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """Return steps and values of one number, as far as they are finite."""
    return [(entry["step"], float(entry[name])) for entry in log if name in entry and math.isfinite(entry[name])]
