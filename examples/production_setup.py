"""A server as one would deploy it: settings from the environment, the model in a process of its own, metrics, an
orderly end on SIGTERM or `splitlearn drain`.

MODEL_ID=gpt2 PORT=50051 python examples/production_setup.py

| variable | |
|---|---|
| `MODEL_ID` | hub id, local directory or `builtin` (default); or |
| `MODEL_TYPE` | `gpt2`, `qwen2` or `gemma`: a model of that family |
| `DEVICE` | `cpu`, `cuda:0`, …; default: the first GPU if there is one |
| `PORT`, `METRICS_PORT` | default 50051 and 9464; 0 picks a free one |
| `ENABLE_METRICS` | `true` (default) or `false` |
| `LOG_LEVEL` | default `info` |

Every other setting can be given as SPLITLEARN_…, for example SPLITLEARN_SERVER_MAX_SESSIONS=16.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any

from splitlearn_manager.serving import make_server
from splitlearn_manager.settings import read_environment, settings_from

FAMILIES = {"gpt2": "openai-community/gpt2", "qwen2": "Qwen/Qwen2-0.5B", "gemma": "google/gemma-2b"}
SWITCH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def one_of(table: Mapping[str, Any], name: str, text: str) -> Any:
    if text.lower() not in table:
        raise SystemExit(f"{name} must be one of {', '.join(table)}; got {text!r}")
    return table[text.lower()]


def configuration(environment: Mapping[str, str]) -> dict[str, object]:
    """Return what the variables above say, as the tables of a configuration file."""
    family = environment.get("MODEL_TYPE")
    model = {"model": environment.get("MODEL_ID") or (one_of(FAMILIES, "MODEL_TYPE", family) if family else "builtin")}
    if device := environment.get("DEVICE"):
        model["device"] = device
    server = {}
    if one_of(SWITCH, "ENABLE_METRICS", environment.get("ENABLE_METRICS", "true")):
        server["metrics_port"] = int(environment.get("METRICS_PORT", "9464"))
    said = {"port": int(environment.get("PORT", "50051")), "log_level": environment.get("LOG_LEVEL", "info").lower()}
    return said | {"models": [model], "managed": True, "server": server}


def main() -> None:
    general, special = configuration(os.environ), read_environment(os.environ)
    settings = settings_from(("the environment", general), ("SPLITLEARN_…", special))
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    server = make_server(settings)
    # Serves until SIGTERM: not ready any more, sessions move or finish, and the process ends with status 0.
    server.start(on_ready=lambda: print(f"listening at {server.address}", server.metrics_url or "", flush=True))


if __name__ == "__main__":
    main()
