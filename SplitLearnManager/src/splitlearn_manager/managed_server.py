"""One trunk, served: from a model's name to a listening server."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from splitlearn_comm import Observer
from splitlearn_core import Trunk, compile_part, load_part
from splitlearn_core.checkpoint.source import locate
from splitlearn_core.engine import EngineLimits
from splitlearn_manager.config import ServerConfig
from splitlearn_manager.control.models import OneModel
from splitlearn_manager.device import choose_device
from splitlearn_manager.listening import ListeningServer, check_places
from splitlearn_manager.runtime.cache_book import CacheLimits
from splitlearn_manager.runtime.hosted_trunk import HostedTrunk
from splitlearn_manager.runtime.training_desk import TrainingLimits

logger = logging.getLogger(__name__)


class ManagedServer(ListeningServer):
    """Hosts the Trunk of one model for many clients.

    The model is loaded here, the port taken by `start`.

    Args:
        model: a hub id, a local directory, or `"builtin"`; None for the built-in model.
        port: TCP port; 0 picks a free one, see `address`.
        host: address to listen at, or `unix:/path`; the default is reachable from this machine alone.
        split_points: `(a, b)`, the trunk being layers `[a, b)`; None for two layers at each end.
        device: where the trunk runs; None for the first GPU, else the CPU.
        dtype: dtype of weights and hidden states; None for float32 on the CPU, the checkpoint's own on a GPU.
        attn_implementation: as in transformers; None for what the model prefers.
        compile: run the trunk's layers through `torch.compile`, which takes seconds to minutes here; where that cannot
            be had they run as they are, and a warning says why.
        revision: branch, tag or commit on the hub; None for its default branch.
        config: all other settings.
        observer: is told of calls, steps and sessions, beside the metrics that the configuration may ask for.

    Raises:
        CheckpointError, SplitPointError, UnsupportedModelError: (of splitlearn_core) when the model is loaded.
        DeviceNotFoundError: no such device.
        AddressInUseError: (of splitlearn_comm) the port, or that of the metrics, is in use, said before the model is
            loaded.
        ValueError: other machines could connect, and there is no TLS, or nobody is asked who he is (see
            `ServerConfig.allow_insecure`); or a certificate or token file is of no use. Said before that too.
        OSError: such a file cannot be read.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        port: int = 50051,
        host: str = "127.0.0.1",
        split_points: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        attn_implementation: str | None = None,
        compile: bool = False,
        revision: str | None = None,
        config: ServerConfig = ServerConfig(),  # noqa: B008 - frozen
        observer: Observer | None = None,
    ) -> None:
        self.model_id = model or "builtin"
        check_places(host, port, config)
        chosen = choose_device(device)
        began_s = time.monotonic()
        commit = locate(self.model_id, revision).commit
        trunk = load_part(
            self.model_id,
            "trunk",
            split_points,
            device=chosen,
            dtype=dtype,
            attn_implementation=attn_implementation,
            revision=commit,
        )
        assert isinstance(trunk, Trunk)
        log_choices(self.model_id if commit is None else f"{self.model_id} at commit {commit}", trunk)
        if compile:
            compile_part(trunk, inference=True)
        hosted = HostedTrunk(
            trunk,
            name=public_name(self.model_id),
            training_limits=TrainingLimits(
                max_trainings=config.max_trainings,
                allow_full=config.allow_full_training,
                max_bytes=config.max_training_bytes,
                pass_timeout_s=config.pass_timeout_s,
            ),
            engine_limits=EngineLimits(max_rows=config.max_rows_per_forward, max_tokens=config.max_tokens_per_forward),
            cache_limits=CacheLimits(max_tokens=config.max_cached_tokens, max_bytes=config.max_cache_bytes),
        )
        load_s = time.monotonic() - began_s
        models = OneModel(hosted, time.time(), lambda: self.statistics().sessions_open, load_s)
        super().__init__(hosted, models, port=port, host=host, config=config, observer=observer)


def public_name(model_id: str) -> str:
    """Return what clients are told: of a directory the last part, for where it lies is nobody else's business."""
    path = Path(model_id).expanduser()
    return path.resolve().name if path.is_dir() else model_id


def log_choices(model: str, trunk: Trunk) -> None:
    """Say what was chosen, so that nobody has to guess."""
    a, b = trunk.split_points
    logger.info(
        "hosting layers [%d, %d) of %d of %s: device %s, dtype %s, attention %s, fingerprint %s",
        a,
        b,
        trunk.cut.num_layers,
        model,
        trunk.device,
        trunk.dtype,
        trunk.config._attn_implementation,
        (trunk.fingerprint or "none")[:12],
    )
