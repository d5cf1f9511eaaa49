"""A model to host, as people write it: the keys of a table in a file, or the parameters of a call. Pure."""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import PurePath
from typing import Any

import torch

from splitlearn_manager.runtime.model_spec import ModelSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KEYS = tuple(item.name for item in fields(ModelSpec))
"""What can be said of a model."""
TEXTS = ("name", "model", "revision", "device", "attn_implementation")


def read_fields(values: Mapping[str, object]) -> dict[str, Any]:
    """Return fields of a `ModelSpec`, from what people write.

    Args:
        values: texts and numbers by key; `split_points` as `"2,6"` or `[2, 6]`, `dtype` by its name.

    Raises:
        ValueError: an unknown key, or a value of the wrong kind.
    """
    if unknown := [key for key in values if key not in KEYS]:
        raise ValueError(f"unknown key {unknown[0]!r} of a model; there are {', '.join(KEYS)}")
    read = dict(values)
    for key in TEXTS:
        if key in read and not isinstance(read[key], str):
            raise ValueError(f"{key} must be text; got {read[key]!r}")
    if "split_points" in read:
        read["split_points"] = read_split_points(read["split_points"])
    if "dtype" in read:
        read["dtype"] = read_dtype(read["dtype"])
    return read


def read_spec(values: Mapping[str, object]) -> ModelSpec:
    """Return the model that a table describes; without a name it gets that of what is loaded.

    Raises:
        ValueError: as `read_fields`, or what is said cannot be.
    """
    read = read_fields(values)
    return ModelSpec(**{"name": name_of(read.get("model", "builtin")), **read})


def name_of(model: str) -> str:
    """Return what clients call a model when nobody said: the last part of its hub id or directory, made a name."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", PurePath(model).name).lstrip("._-")[:128] or "model"


def read_split_points(value: object) -> tuple[int, int]:
    """Turn `"2,6"` or `[2, 6]` into `(2, 6)`. Raises `ValueError` for anything else."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        first, second = (int(part) for part in parts)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ValueError(f"split_points must be two whole numbers such as 2,6; got {value!r}") from None
    return first, second


def read_dtype(value: object) -> torch.dtype:
    """Turn the name of a dtype into the dtype. Raises `ValueError` for an unknown one."""
    if not isinstance(value, str) or value not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {value!r}")
    return DTYPES[value]
