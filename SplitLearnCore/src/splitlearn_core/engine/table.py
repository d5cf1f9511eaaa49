"""How the sessions of a trunk may share a forward: from the measured table, or from a trial on a tiny model."""

from transformers import PreTrainedConfig, PreTrainedModel

from splitlearn_core.engine.batching import ROPE_REASON, Batching, Joining, follows_longest_row
from splitlearn_core.engine.trial import try_batching
from splitlearn_core.parts.trunk import Trunk
from splitlearn_core.split.cut_copy import cut_copy
from splitlearn_core.split.points import SplitPoints
from splitlearn_core.split.support import SupportRow, first_line, row_of, tiny_model_like

TRIAL_LAYERS = 6
TRIAL_POINTS = SplitPoints(1, 5)
"""Four layers: mixtures of kinds seldom repeat later."""

_tried: dict[tuple[str, type[PreTrainedModel]], Batching] = {}
"""Results of trials in this process."""


def batching_of(trunk: Trunk) -> Batching:
    """Return what is exact for a trunk's sessions.

    What the table does not hold for this version of transformers is tried on a tiny random model of the same kind,
    which takes a second, once in a process.
    """
    if follows_longest_row(trunk.config):
        return Batching(joining=Joining.ALONE, alone_because=ROPE_REASON, whole_because=ROPE_REASON)
    row = row_of(trunk.config.model_type, trunk.architecture)
    if row is not None and row.joining is not None:
        return batching_in(row)
    key = (trunk.config.model_type, trunk.architecture)
    if key not in _tried:
        _tried[key] = _tried_like(trunk.config, trunk.architecture)
    return _tried[key]


def batching_in(row: SupportRow) -> Batching:
    """Return what a row of the table says."""
    return Batching(joining=Joining(row.joining), alone_because=row.alone_because, whole_because=row.whole_because)


def try_tiny(model: PreTrainedModel) -> Batching:
    """Try a tiny model of `TRIAL_LAYERS` layers, whole."""
    return try_batching(cut_copy(Trunk, model, TRIAL_POINTS))


def _tried_like(config: PreTrainedConfig, architecture: type[PreTrainedModel]) -> Batching:
    try:
        return try_tiny(tiny_model_like(config, architecture, TRIAL_LAYERS))
    except Exception as error:  # a family may refuse sizes that do not suit it with anything
        reason = f"no tiny model of it can be made to try it on ({first_line(error)})"
        return Batching(joining=Joining.ALONE, alone_because=reason, whole_because=reason)
