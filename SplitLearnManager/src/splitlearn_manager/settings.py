"""The configuration of `splitlearn serve`: what a file, the environment and flags say, as one checked object. Pure.

Each of the three is a tree of tables with the same keys; what a later one says counts. In a file::

    port = 50051

    [server]
    max_sessions = 32
    tokens = "tokens.txt"
    operators = ["alice"]

    [lifecycle]
    memory_bytes = {cpu = 8_000_000_000}

    [[models]]
    name = "small"
    model = "builtin"
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from splitlearn_comm.logs import FORMATS
from splitlearn_comm.server import ClientLimits, ServerTLS, TokenFile
from splitlearn_manager.config import ServerConfig
from splitlearn_manager.errors import ConfigurationError
from splitlearn_manager.lifecycle import LifecycleConfig, ModelSpec
from splitlearn_manager.model_server import check_labels
from splitlearn_manager.runtime.model_spec import TRAINING_KEYS
from splitlearn_manager.spec_reading import KEYS as MODEL_KEYS
from splitlearn_manager.spec_reading import read_spec

PREFIX = "SPLITLEARN_"
IN_PROCESS_KEYS = frozenset(
    {"model", "revision", "split_points", "device", "dtype", "attn_implementation", "compile", *TRAINING_KEYS}
)
"""What can be said of a model that runs in the server's own process."""
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("auto", *FORMATS)
Tree = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Everything that can be said about a server, checked once.

    Raises:
        ValueError: what is said cannot be.
    """

    models: tuple[ModelSpec, ...] = (ModelSpec(name="builtin"),)
    """What to load at the start."""
    managed: bool = False
    """Whether each model has a process of its own, and others may come and go; else there is one, in the server's."""
    host: str = "127.0.0.1"
    """Address to listen at, or `unix:/path`."""
    port: int = 50051
    """TCP port; 0 picks a free one."""
    log_level: str = "info"
    """debug, info, warning or error."""
    log_format: str = "auto"
    """json, text, or auto for text on a terminal and JSON elsewhere."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """Limits, and who may call."""
    lifecycle: LifecycleConfig = field(default_factory=LifecycleConfig)
    """Memory for models, waiting times and restarts."""

    def __post_init__(self) -> None:
        if isinstance(self.port, bool) or not isinstance(self.port, int) or not 0 <= self.port <= 65535:
            raise ValueError(f"port must be a number from 0 to 65535; got {self.port!r}")
        if not isinstance(self.host, str):
            raise ValueError(f"host must be text; got {self.host!r}")
        if self.log_level not in LOG_LEVELS:
            raise ValueError(f"log_level must be one of {', '.join(LOG_LEVELS)}; got {self.log_level!r}")
        if self.log_format not in LOG_FORMATS:
            raise ValueError(f"log_format must be one of {', '.join(LOG_FORMATS)}; got {self.log_format!r}")
        if not isinstance(self.managed, bool):
            raise ValueError(f"managed must be true or false; got {self.managed!r}")
        if not self.managed and len(self.models) != 1:
            raise ValueError(f"a server that is not managed holds one model; got {len(self.models)}")
        check_labels(self.models)


def _names(kind: type, *without: str) -> tuple[str, ...]:
    return tuple(item.name for item in fields(kind) if item.name not in without)


TABLES: Mapping[tuple[str, ...], tuple[str, ...]] = {
    (): ("models", "managed", "host", "port", "log_level", "log_format", "server", "lifecycle"),
    ("server",): _names(ServerConfig),
    ("server", "tls"): _names(ServerTLS),
    ("server", "client_limits"): _names(ClientLimits),
    ("lifecycle",): _names(LifecycleConfig),
}
"""Every table and its keys; `models` is a list of tables, and `lifecycle.memory_bytes` has devices for keys."""
if set(TABLES[()]) != set(_names(ServeSettings)):
    raise RuntimeError("the keys of a configuration and ServeSettings have come apart")
TEXTS = {
    ("host",),
    ("log_level",),
    ("log_format",),
    ("server", "tokens"),
    ("server", "metrics_host"),
    *(("server", "tls", key) for key in TABLES["server", "tls"]),
}


def read_file(path: Path) -> Tree:
    """Return what a TOML file says.

    Raises:
        ConfigurationError: it cannot be read, or has a key that there is not; names file and key.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"the configuration {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigurationError(f"the configuration {path} is no TOML: {error}") from error
    check_keys(tree, str(path))
    return tree


def read_environment(environment: Mapping[str, str]) -> Tree:
    """Return what environment variables say: `SPLITLEARN_PORT`, `SPLITLEARN_SERVER_MAX_SESSIONS`, …

    Values are written as in a file, texts without quotes; `SPLITLEARN_MODELS` is a list such as `gpt2,small=builtin`.

    Raises:
        ConfigurationError: a variable of a table that has no such key.
    """
    paths = {PREFIX + "_".join(path).upper(): path for path in _leaves()}
    tree: Tree = {}
    for name, text in environment.items():
        if name in paths:
            _put(tree, paths[name], _value(paths[name], text))
        elif name.startswith((PREFIX + "SERVER_", PREFIX + "LIFECYCLE_")):
            raise ConfigurationError(f"the environment variable {name} names no key; there are {', '.join(paths)}")
    return tree


def read_models(texts: Sequence[str]) -> list[Tree]:
    """Return the tables of models that were written as `MODEL` or `NAME=MODEL`."""
    parts = [text.rpartition("=") for text in texts]
    return [{"name": name, "model": model} if is_named else {"model": model} for name, is_named, model in parts]


def check_keys(tree: Mapping[str, Any], where: str, path: tuple[str, ...] = ()) -> None:
    """Raise `ConfigurationError`, with where it is, for a key that there is not, or a table that is none."""
    for key, value in tree.items():
        here = (*path, key)
        if key not in TABLES[path]:
            known = ", ".join(".".join((*path, name)) for name in TABLES[path])
            raise ConfigurationError(f"{where}: unknown key {'.'.join(here)!r}; there are {known}")
        if here in TABLES or here == ("lifecycle", "memory_bytes"):
            if not isinstance(value, Mapping):
                raise ConfigurationError(f"{where}: {'.'.join(here)} must be a table; got {value!r}")
            if here in TABLES:
                check_keys(value, where, here)
    if not path:
        _check_models(tree.get("models", []), where)


def settings_from(*sources: tuple[str, Tree]) -> ServeSettings:
    """Put together what was said, the last word counting.

    Args:
        sources: each with its name for messages.

    Raises:
        ConfigurationError: a value that cannot be, with the names of those who said something.
    """
    tree: Tree = {}
    for _, said in sources:
        tree = _merged(tree, said)
    where = " and ".join(name for name, said in sources if said) or "the defaults"
    try:
        return _built(tree)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _built(tree: Tree) -> ServeSettings:
    tables = tree.get("models", [{}])
    top = {key: tree[key] for key in ("host", "port", "log_level", "log_format") if key in tree}
    is_managed = len(tables) != 1 or not set(tables[0]) <= IN_PROCESS_KEYS
    return ServeSettings(
        models=tuple(read_spec(table) for table in tables),
        managed=tree.get("managed", is_managed),
        server=_server(tree.get("server", {})),
        lifecycle=LifecycleConfig(**tree.get("lifecycle", {})),
        **top,
    )


def _server(tree: Tree) -> ServerConfig:
    values = dict(tree)
    if "tls" in values:
        missing = {"certificate", "key"} - set(values["tls"])
        if missing:
            raise ValueError(f"server.tls needs certificate and key; there is no {' and no '.join(sorted(missing))}")
        values["tls"] = ServerTLS(**values["tls"])
    if "tokens" in values:
        if not isinstance(values["tokens"], str):
            raise ValueError("server.tokens must be the path of a token file, as text")
        values["tokens"] = TokenFile(values["tokens"])
    if "client_limits" in values:
        values["client_limits"] = ClientLimits(**values["client_limits"])
    if isinstance(values.get("operators"), list):
        values["operators"] = tuple(values["operators"])
    return ServerConfig(**values)


def _check_models(tables: Any, where: str) -> None:
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise ConfigurationError(f"{where}: models must be a list of tables: begin each with a line [[models]]")
    for table in tables:
        if unknown := [key for key in table if key not in MODEL_KEYS]:
            raise ConfigurationError(f"{where}: unknown key 'models.{unknown[0]}'; there are {', '.join(MODEL_KEYS)}")


def _leaves(path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key in TABLES[path]:
        here = (*path, key)
        if here in TABLES:
            yield from _leaves(here)
        else:
            yield here


def _value(path: tuple[str, ...], text: str) -> Any:
    if path == ("models",):
        return read_models([part.strip() for part in text.split(",") if part.strip()])
    if path in TEXTS:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text


def _put(tree: Tree, path: tuple[str, ...], value: Any) -> None:
    *tables, key = path
    for table in tables:
        tree = tree.setdefault(table, {})
    tree[key] = value


def _merged(before: Tree, after: Tree) -> Tree:
    shared = [key for key, value in after.items() if isinstance(value, dict) and isinstance(before.get(key), dict)]
    return {**before, **after, **{key: _merged(before[key], after[key]) for key in shared}}
