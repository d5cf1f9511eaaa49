"""From one configuration to the server that it describes."""

from dataclasses import replace

from splitlearn_comm import Observer
from splitlearn_manager.listening import ListeningServer
from splitlearn_manager.managed_server import ManagedServer
from splitlearn_manager.model_server import ModelServer
from splitlearn_manager.settings import ServeSettings


def make_server(settings: ServeSettings, observer: Observer | None = None) -> ListeningServer:
    """Return a server; `start` makes it listen.

    Args:
        settings: what was configured. A server that is not managed loads its model here, others load theirs in `start`.
        observer: is told of calls, steps and sessions.

    Raises:
        ValueError, OSError, AddressInUseError: as `ManagedServer` and `ModelServer`.
        CheckpointError, SplitPointError, UnsupportedModelError, DeviceNotFoundError: as `ManagedServer`.
    """
    if settings.managed:
        return ModelServer(
            settings.models,
            port=settings.port,
            host=settings.host,
            config=settings.server,
            lifecycle=settings.lifecycle,
            observer=observer,
        )
    (spec,) = settings.models
    return ManagedServer(
        spec.model,
        port=settings.port,
        host=settings.host,
        split_points=spec.split_points,
        device=spec.device,
        dtype=spec.dtype,
        attn_implementation=spec.attn_implementation,
        compile=spec.compile,
        revision=spec.revision,
        config=replace(settings.server, **spec.said_of_training),
        observer=observer,
    )
