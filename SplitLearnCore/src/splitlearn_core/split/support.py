"""What can be cut exactly: the measured table of architectures, and a check on the spot for what it does not hold."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import combinations
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from splitlearn_core.errors import UnsupportedModelError
from splitlearn_core.parts.classes import architecture_of
from splitlearn_core.split.layers import decoder_config
from splitlearn_core.split.parity import check_parity, failure_at_other_cuts
from splitlearn_core.split.refusals import CONDITIONS, REASONS
from splitlearn_core.split.tiny import default_tiny_config, tiny_config_like, tiny_model

SELF_CHECK_LAYERS = 4
"""With four layers every kind of cut is there: parts of one layer and of two, at either end."""

SELF_CHECK_STEPS = 3
"""Cached steps: the first is special in some caches, the second in others."""


@dataclass(frozen=True, kw_only=True)
class SupportRow:
    """What is known of one model type."""

    model_type: str
    """As in `config.json`."""
    architecture: str
    """Name of its causal language model class in transformers."""
    refusal: str | None
    """Why it cannot be cut, as a clause; None when it can."""
    prefill: float | None
    """Measured difference of logits by the largest logit, three parts against the whole; None where refused."""
    decode: float | None
    """The same over cached steps."""
    gradients: float | None
    """Measured difference of gradients by the largest."""
    joining: str | None = None
    """How steps of several sessions share a forward, `ragged`, `padded` or `alone`; None where it was not tried."""
    alone_because: str | None = None
    """Why they do not share one, as a clause; None where they do."""
    whole_because: str | None = None
    """Why a prompt has to come in one piece, as a clause; None where it may come in chunks."""


def support_rows() -> tuple[SupportRow, ...]:
    """Return the table, one row a model type, in the order of their names."""
    return _table()[1]


def measured_with() -> str:
    """Return the version of transformers that the table was measured with."""
    return _table()[0]


def check_supported(config: PreTrainedConfig, architecture: type[PreTrainedModel] | None = None) -> None:
    """Refuse, before any weights are read, a model that cannot be cut exactly.

    What the table does not hold for this version of transformers is checked on a tiny random model of the same kind,
    which takes a second, once in a process.

    Args:
        config: configuration of the whole model.
        architecture: class of the model; None for the causal language model class that transformers has for it.

    Raises:
        UnsupportedModelError: naming the model type and the reason.
    """
    architecture = architecture or architecture_of(config)
    reason = refusal(config, architecture)
    if reason is not None:
        raise UnsupportedModelError(f"{config.model_type} cannot be cut exactly: {reason}")


def refusal(config: PreTrainedConfig, architecture: type[PreTrainedModel]) -> str | None:
    """Return why a model cannot be cut exactly, as a clause; None when it can."""
    decoder = decoder_config(config)
    if config.model_type in REASONS or decoder.model_type in REASONS:
        return REASONS.get(config.model_type) or REASONS[decoder.model_type]
    broken = next((condition for condition in CONDITIONS if condition.is_broken(decoder)), None)
    if broken is not None:
        return broken.reason
    row = row_of(config.model_type, architecture)
    return row.refusal if row is not None else _self_check(config, architecture)


def row_of(model_type: str, architecture: type[PreTrainedModel]) -> SupportRow | None:
    """Return the row that was measured with this very class."""
    rows = (row for row in support_rows() if (row.model_type, row.architecture) == (model_type, architecture.__name__))
    same_code = architecture.__module__.startswith("transformers.") and measured_with() == transformers.__version__
    return next(rows, None) if same_code else None


_checked: dict[tuple[str, type[PreTrainedModel]], str | None] = {}
"""Results of self-checks in this process."""


def _self_check(config: PreTrainedConfig, architecture: type[PreTrainedModel]) -> str | None:
    key = (config.model_type, architecture)
    if key not in _checked:
        _checked[key] = self_check(config, architecture)
    return _checked[key]


def self_check(config: PreTrainedConfig, architecture: type[PreTrainedModel]) -> str | None:
    """Cut a tiny model with the features of a configuration at every place, and say what does not hold."""
    try:
        model = tiny_model_like(config, architecture, SELF_CHECK_LAYERS)
    except Exception as error:  # a family may refuse sizes that do not suit it with anything
        return f"no tiny model of it can be made to check the cut on ({first_line(error)})"
    try:
        first, *others = combinations(range(1, SELF_CHECK_LAYERS), 2)
        parity = check_parity(model, first, num_steps=SELF_CHECK_STEPS, with_gradients=False)
        return parity.failure() or failure_at_other_cuts(model, others, num_steps=SELF_CHECK_STEPS)
    except Exception as error:  # a layer that misses what lives elsewhere may fail with anything
        return f"a part of it fails on its own ({first_line(error)})"


def tiny_model_like(config: PreTrainedConfig, architecture: type[PreTrainedModel], num_layers: int) -> PreTrainedModel:
    """Build a tiny random model with the features of a configuration, or with its family's where they do not suit it.

    Raises:
        Exception: whatever a family says to sizes that do not suit it.
    """
    try:
        return tiny_model(architecture, tiny_config_like(config, num_layers))
    except Exception:  # the sizes of a real model's features need not suit a tiny one: take the family's defaults
        return tiny_model(architecture, default_tiny_config(type(config), num_layers))


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@cache
def _table() -> tuple[str, tuple[SupportRow, ...]]:
    text = resources.files("splitlearn_core.split").joinpath("families.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table["transformers"], tuple(_rows(table["families"]))


def _rows(families: dict[str, dict[str, Any]]) -> Iterator[SupportRow]:
    for model_type, fields in sorted(families.items()):
        yield SupportRow(
            model_type=model_type,
            architecture=fields["architecture"],
            refusal=fields.get("refusal"),
            prefill=fields.get("prefill"),
            decode=fields.get("decode"),
            gradients=fields.get("gradients"),
            joining=fields.get("joining"),
            alone_because=fields.get("alone_because"),
            whole_because=fields.get("whole_because"),
        )
