"""One trunk, served: from a model's name to a listening server."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch

from splitlearn_comm import GRPCComputeServer, Observer, ServerStatistics, Together
from splitlearn_comm.server import GRPCServerConfig, check_binding
from splitlearn_core import Trunk, load_part
from splitlearn_core.checkpoint.source import locate
from splitlearn_manager.config import ServerConfig
from splitlearn_manager.device import choose_device
from splitlearn_manager.observability import MetricsEndpoint, PrometheusObserver
from splitlearn_manager.observability.endpoint import HOST as METRICS_HOST
from splitlearn_manager.port_check import check_port_is_free
from splitlearn_manager.runtime.hosted_trunk import HostedTrunk

logger = logging.getLogger(__name__)


class ManagedServer:
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
        revision: str | None = None,
        config: ServerConfig = ServerConfig(),  # noqa: B008 - frozen
        observer: Observer | None = None,
    ) -> None:
        self.model_id = model or "builtin"
        wire = comm_config(config)
        check_binding(host, wire)
        wire.check_files()
        chosen = choose_device(device)
        check_port_is_free(host, port)
        if config.metrics_port is not None:
            check_port_is_free(METRICS_HOST, config.metrics_port)
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
        hosted = HostedTrunk(trunk, name=public_name(self.model_id))
        observers = [] if observer is None else [observer]
        self._endpoint: MetricsEndpoint | None = None
        if config.metrics_port is not None:
            metrics = PrometheusObserver()
            self._endpoint = MetricsEndpoint(metrics.registry, config.metrics_port)
            observers.append(metrics)
        watching = Together(*observers) if observers else None
        self._server = GRPCComputeServer(hosted, port=port, host=host, config=wire, observer=watching)

    @property
    def address(self) -> str:
        """Where the server listens, `"host:port"`; known once it was started."""
        return self._server.address

    @property
    def metrics_url(self) -> str | None:
        """Where Prometheus finds the metrics, known once the server was started; None where there are none."""
        return self._endpoint.url if self._endpoint else None

    def statistics(self) -> ServerStatistics:
        """Return what was counted so far: calls, steps, sessions, bytes."""
        return self._server.statistics()

    def start(self, block: bool = True, on_ready: Callable[[], object] | None = None) -> None:
        """Listen and serve.

        Args:
            block: serve until SIGINT or SIGTERM, then let steps in flight finish and return; otherwise return at once.
            on_ready: called once the server listens.

        Raises:
            AddressInUseError: (of splitlearn_comm) the port is in use by now.
        """
        if self._endpoint and not self._server.is_running:
            self._endpoint.start()
        try:
            self._server.start(block=block, on_ready=on_ready)
        finally:
            if self._endpoint and not self._server.is_running:
                self._endpoint.stop()

    def stop(self) -> None:
        """Let steps in flight finish within the grace time, then stop. May be called twice."""
        self._server.stop()
        if self._endpoint:
            self._endpoint.stop()

    def __enter__(self) -> Self:
        self.start(block=False)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


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


def comm_config(config: ServerConfig) -> GRPCServerConfig:
    """Pick what the wire needs to know."""
    return GRPCServerConfig(
        max_sessions=config.max_sessions,
        idle_session_timeout_s=config.idle_session_timeout_s,
        detached_session_timeout_s=config.detached_session_timeout_s,
        max_message_bytes=config.max_message_bytes,
        drain_timeout_s=config.drain_timeout_s,
        drain_idle_timeout_s=config.drain_idle_timeout_s,
        refuse_nonfinite=config.refuse_nonfinite,
        tls=config.tls,
        tokens=config.tokens,
        client_limits=config.client_limits,
        allow_insecure=config.allow_insecure,
        open_reflection=config.open_reflection,
    )
