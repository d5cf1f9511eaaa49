"""What is to be hosted, said completely, so that another process can load it."""

import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch

TRAINING_KEYS = ("max_trainings", "allow_full_training", "pass_timeout_s")
"""What a model that says nothing of it takes from the configuration of its server, which has fields of these names."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One version of one model, checked once.

    Raises:
        ValueError: a name that cannot be one, or a number out of range.
        TypeError: an unknown key.
    """

    name: str
    """What clients ask for: 1 to 128 letters, digits, dots, dashes and underscores."""
    model: str = "builtin"
    """Hub id, local directory, or `"builtin"`."""
    version: int = 1
    """Number of this version; several versions of one name may be loaded at once."""
    revision: str | None = None
    """Branch, tag or commit on the hub; None for its default branch."""
    split_points: tuple[int, int] | None = None
    """`(a, b)`, the trunk being layers `[a, b)`; None for two layers at each end."""
    device: str | None = None
    """Where the trunk runs; None for the first GPU, else the CPU."""
    dtype: torch.dtype | None = None
    """Dtype of weights and hidden states; None for float32 on the CPU, the checkpoint's own on a GPU."""
    attn_implementation: str | None = None
    """As in transformers; None for what the model prefers."""
    compile: bool = False
    """Whether its layers run through `torch.compile`, which takes seconds to minutes when it is loaded; where that
    cannot be had they run as they are, and a warning says why."""
    num_threads: int | None = None
    """CPU threads of the model's process; None for what torch chooses."""
    kv_bytes: int = 256 * MIB
    """Memory set aside for the caches of its sessions, in bytes; counts against the budget, and more is refused them.
    0 sets none aside, and refuses none."""
    activation_bytes: int = 64 * MIB
    """Memory set aside for what one forward makes in passing, in bytes; counts against the budget."""
    training_bytes: int = 0
    """Memory set aside for what clients that train it keep there, in bytes; counts against the budget, and more is
    refused them. 0 sets none aside, and refuses none."""
    max_trainings: int | None = None
    """Clients that train it at once; None for what the server's configuration says."""
    allow_full_training: bool | None = None
    """Whether clients may train all its weights, each of a private copy; None for what the server's configuration
    says."""
    pass_timeout_s: float | None = None
    """A training forward whose backward has not come for so long, in seconds, is forgotten; None for what the server's
    configuration says."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(
                f"a model's name has 1 to 128 letters, digits, dots, dashes and underscores and begins with a letter "
                f"or digit; got {self.name!r}"
            )
        for key, least in (("version", 1), ("kv_bytes", 0), ("activation_bytes", 0), ("training_bytes", 0)):
            _check_count(key, getattr(self, key), least)
        for key, least in (("num_threads", 1), ("max_trainings", 1)):
            if getattr(self, key) is not None:
                _check_count(key, getattr(self, key), least)
        if self.pass_timeout_s is not None:
            _check_seconds("pass_timeout_s", self.pass_timeout_s)
        if not isinstance(self.compile, bool):
            raise ValueError(f"compile must be true or false; got {self.compile!r}")
        if self.allow_full_training is not None and not isinstance(self.allow_full_training, bool):
            raise ValueError(f"allow_full_training must be true, false or None; got {self.allow_full_training!r}")
        if self.dtype is not None and not isinstance(self.dtype, torch.dtype):
            raise ValueError(f"dtype must be a torch.dtype or None; got {self.dtype!r}")

    @property
    def label(self) -> str:
        """Name and version, for people."""
        return f"{self.name} version {self.version}"

    @property
    def said_of_training(self) -> dict[str, Any]:
        """What it says itself of `TRAINING_KEYS`."""
        return {key: value for key in TRAINING_KEYS if (value := getattr(self, key)) is not None}

    def to_json(self) -> str:
        """Return the spec as text."""
        values = asdict(self) | {"dtype": self.dtype and str(self.dtype).removeprefix("torch.")}
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is none.
            TypeError: an unknown key.
        """
        values: dict[str, Any] = json.loads(text)
        if unknown := set(values) - {item.name for item in fields(cls)}:
            raise TypeError(f"unknown keys of a model: {', '.join(sorted(unknown))}")
        if values.get("dtype") is not None:
            values["dtype"] = getattr(torch, values["dtype"])
        if values.get("split_points") is not None:
            values["split_points"] = tuple(values["split_points"])
        return cls(**values)


def _check_count(key: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{key} must be a whole number of at least {least}; got {value!r}")


def _check_seconds(key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{key} must be a number greater than zero; got {value!r}")
