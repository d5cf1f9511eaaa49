"""What people hand to this package by mistake, refused at once: what was expected, what came, what to do.

What arrives over a network is checked in `validation`, addresses in `addresses`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch

_UNITS = ("_s", "_bytes")


def kind_of(value: object) -> str:
    """The type of a value, as people write it: `list`, `numpy.ndarray`."""
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    return kind.__name__ if package == "builtins" else f"{package}.{kind.__name__}"


def check_tensor(value: object, name: str = "") -> None:
    """Raise `TypeError` for what is no tensor; `name` is that of the argument, where it is not the first."""
    if isinstance(value, torch.Tensor):
        return
    came = kind_of(value)
    if came == "numpy.ndarray":
        advice = ": use torch.from_numpy"
    elif isinstance(value, bool | int | float | list | tuple) or came.startswith("numpy."):
        advice = ": use torch.tensor"
    elif isinstance(value, Mapping):
        advice = ": send one tensor of it a call"
    else:
        advice = ""
    raise TypeError(f"{f'{name}: ' if name else ''}expected a torch.Tensor, came {came}{advice}")


def check_inputs(tensor: object, attention_mask: object, position_ids: object) -> None:
    """Raise `TypeError` where what a client calls with are no tensors."""
    check_tensor(tensor)
    if attention_mask is not None:
        check_tensor(attention_mask, "attention_mask")
    if position_ids is not None:
        check_tensor(position_ids, "position_ids")


def check_number(name: str, value: object) -> None:
    """Raise `TypeError` for what is no number, `ValueError` for one that is not greater than zero."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number greater than zero, came {value!r}")
    if not value > 0:
        raise ValueError(f"{name} must be greater than zero, came {value}")


def check_options(given: Collection[str], known: Collection[str]) -> None:
    """Raise `TypeError` for the first option that there is not, with the names of those there are."""
    for name in given:
        if name not in known:
            with_unit = (name + unit for unit in _UNITS if name + unit in known)
            meant = next(with_unit, None) or next(iter(difflib.get_close_matches(name, known, n=1)), None)
            hint = f"did you mean {meant}? " if meant else ""
            raise TypeError(f"a client has no option {name!r}: {hint}There are {', '.join(sorted(known))}")


def check_no_options(given: Collection[str], known: Collection[str]) -> None:
    """Raise `TypeError` for what a session is given that it does not take; options of the client are named as such."""
    for name in given:
        if name in known:
            raise TypeError(f"{name} is an option of the client, for all its sessions: Client(address, {name}=...)")
        raise TypeError(f"session() takes expected_fingerprint and adapter, came {name}")


def check_kind(value: object, kinds: tuple[type, ...], expected: str, name: str) -> None:
    """Raise `TypeError` where an argument is of none of the types that it may be of."""
    if not isinstance(value, kinds):
        raise TypeError(f"{name}: expected {expected}, came {value!r}")


def check_tokens(tokens: object, kinds: tuple[type, ...]) -> None:
    """Raise `TypeError` for tokens that are neither a file nor names with their tokens. The message holds no token."""
    if isinstance(tokens, str) or hasattr(tokens, "__fspath__"):
        raise TypeError(
            f"tokens: expected a TokenFile or a mapping, came {kind_of(tokens)}: for a file, TokenFile(path)"
        )
    if not isinstance(tokens, kinds):
        raise TypeError(f"tokens: expected a TokenFile or a mapping of names to tokens, came {kind_of(tokens)}")


def check_module(module: object) -> None:
    """Raise `TypeError` for what is no torch module."""
    if isinstance(module, torch.nn.Module):
        return
    if inspect.isclass(module):
        raise TypeError(
            f"expected a torch.nn.Module, came the class {module.__name__}: make one, {module.__name__}(...)"
        )
    raise TypeError(
        f"expected a torch.nn.Module, came {kind_of(module)}: derive from ComputeFunction for other functions"
    )


def no_service(service: Any, kinds: tuple[type, ...]) -> TypeError:
    """The error for what cannot be served.

    Args:
        service: What came.
        kinds: The classes of which it should be.
    """
    if inspect.isclass(service):
        is_one = issubclass(service, kinds)
        advice = f"make one, {service.__name__}()" if is_one else "derive it from ComputeFunction, and make one"
        came = f"the class {service.__name__}"
    elif isinstance(service, torch.nn.Module):
        came, advice = f"the torch module {type(service).__name__}", "wrap it, ModelComputeFunction(module)"
    elif callable(service):
        came = f"the function {getattr(service, '__name__', kind_of(service))}"
        advice = "derive a class from ComputeFunction whose compute() calls it"
    else:
        came, advice = kind_of(service), "derive a class from ComputeFunction"
    return TypeError(f"expected a ComputeFunction, a SessionHost or a HostDirectory to serve, came {came}: {advice}")
