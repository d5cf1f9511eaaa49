"""What is asked for by the parameters of a call to load or unload a model. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from splitlearn_comm import InvalidRequestError
from splitlearn_manager._proto.inference import grpc_service_pb2 as pb
from splitlearn_manager.runtime.model_spec import ModelSpec
from splitlearn_manager.spec_reading import KEYS, read_fields

CONFIG = "config"
"""Parameter that holds others as a JSON object: stock clients send no other."""
RELOAD = "reload"
VERSION = "version"
DRAIN_TIMEOUT = "drain_timeout_s"
UNLOAD_DEPENDENTS = "unload_dependents"
"""Stock clients always send it, and nothing depends on a model here."""
LOAD_KEYS = (*(key for key in KEYS if key != "name"), RELOAD, CONFIG)
UNLOAD_KEYS = (VERSION, DRAIN_TIMEOUT, UNLOAD_DEPENDENTS)

Parameters = Mapping[str, pb.ModelRepositoryParameter]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOrder:
    """A model to load."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a `ModelSpec`. With `model` all others are as new; without, as the model had them before."""
    is_reload: bool = False
    """Whether it takes the place of the version that serves now."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing has to be known of the model from before."""
        return "model" in self.changes

    def spec(self, known: ModelSpec | None = None) -> ModelSpec:
        """Return what to load.

        Args:
            known: what it was before; not needed where the order is complete.

        Raises:
            InvalidRequestError: (of splitlearn_comm) what is asked for cannot be.
        """
        try:
            if self.is_complete or known is None:
                return ModelSpec(name=self.name, **self.changes)
            return replace(known, **self.changes)
        except ValueError as error:
            raise InvalidRequestError(str(error)) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class UnloadOrder:
    """A model to unload."""

    name: str
    version: int | None = None
    """None for all versions that are loaded."""
    drain_timeout_s: float | None = None
    """How long its sessions may go on; None for the configured time."""


def load_order(request: pb.RepositoryModelLoadRequest) -> LoadOrder:
    """Read a call to load a model.

    Raises:
        InvalidRequestError: (of splitlearn_comm) an unknown parameter, or one that cannot be.
    """
    values = _values(request.parameters, LOAD_KEYS)
    values |= _config(values.pop(CONFIG)) if CONFIG in values else {}
    is_reload = _flag(RELOAD, values.pop(RELOAD, False))
    if is_reload and VERSION in values:
        raise InvalidRequestError("a reload chooses the version itself: leave version out, or reload")
    try:
        return LoadOrder(name=request.model_name, changes=read_fields(values), is_reload=is_reload)
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error


def unload_order(request: pb.RepositoryModelUnloadRequest) -> UnloadOrder:
    """Read a call to unload a model; raises as `load_order`."""
    values = _values(request.parameters, UNLOAD_KEYS)
    _flag(UNLOAD_DEPENDENTS, values.get(UNLOAD_DEPENDENTS, False))
    version = values.get(VERSION)
    if isinstance(version, str) and version.isdecimal():
        version = int(version)
    if version is not None and (isinstance(version, bool) or not isinstance(version, int)):
        raise InvalidRequestError(f"parameter version must be a whole number; got {version!r}")
    return UnloadOrder(name=request.model_name, version=version, drain_timeout_s=_seconds(values.get(DRAIN_TIMEOUT)))


def _values(parameters: Parameters, known: tuple[str, ...]) -> dict[str, Any]:
    if unknown := sorted(set(parameters) - set(known)):
        raise InvalidRequestError(f"unknown parameter {unknown[0]!r}; there are {', '.join(known)}")
    values = {}
    for key, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None or kind == "bytes_param":
            raise InvalidRequestError(f"parameter {key} must be text, a whole number, or true or false")
        values[key] = getattr(parameter, kind)
    return values


def _config(text: object) -> dict[str, Any]:
    try:
        values = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise InvalidRequestError(f'parameter {CONFIG} must be a JSON object such as {{"model": "gpt2"}}; got {text!r}')
    if unknown := sorted(set(values) - set(LOAD_KEYS) | set(values) & {CONFIG}):
        raise InvalidRequestError(f"unknown key {unknown[0]!r} in {CONFIG}; there are {', '.join(LOAD_KEYS[:-1])}")
    return values


def _flag(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequestError(f"parameter {key} must be true or false; got {value!r}")
    return value


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < float("inf") or isinstance(value, bool):
        raise InvalidRequestError(f"parameter {DRAIN_TIMEOUT} must be a number of seconds, as text; got {value!r}")
    return seconds
