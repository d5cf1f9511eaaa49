"""Several models, served at one address: each in a process of its own, loaded and unloaded while others serve."""

from collections.abc import Sequence

from splitlearn_comm import Observer
from splitlearn_manager.config import ServerConfig
from splitlearn_manager.control.models import ManagedModels
from splitlearn_manager.lifecycle import LifecycleConfig, ModelSpec
from splitlearn_manager.listening import ListeningServer, check_places
from splitlearn_manager.model_hosts import ModelHosts
from splitlearn_manager.runtime.model_spec import TRAINING_KEYS
from splitlearn_manager.spec_reading import read_spec


class ModelServer(ListeningServer):
    """Hosts the Trunks of several models for many clients, and lets operators change them.

    ::

        ModelServer([ModelSpec(name="small"), "gpt2"], port=50051).start()

    The port is taken by `start`, which loads the models and listens once all are ready. Clients choose with `model=`.

    Args:
        models: what to load at the start; of a text the model's hub id or directory, whose last part is its name.
        port: TCP port; 0 picks a free one, see `address`.
        host: address to listen at, or `unix:/path`; the default is reachable from this machine alone.
        config: settings of the server, and who may call and operate it.
        lifecycle: memory for models, waiting times and restarts.
        observer: is told of calls, steps and sessions.

    Raises:
        ValueError: other machines could connect, and there is no TLS, or nobody is asked who he is; or a certificate
            or token file is of no use; or two models have one name and version.
        OSError: such a file cannot be read.
        AddressInUseError: (of splitlearn_comm) the port, or that of the metrics, is in use.
    """

    def __init__(
        self,
        models: Sequence[ModelSpec | str] = (),
        *,
        port: int = 50051,
        host: str = "127.0.0.1",
        config: ServerConfig = ServerConfig(),  # noqa: B008 - frozen
        lifecycle: LifecycleConfig = LifecycleConfig(),  # noqa: B008 - frozen
        observer: Observer | None = None,
    ) -> None:
        specs = [model if isinstance(model, ModelSpec) else read_spec({"model": model}) for model in models]
        check_labels(specs)
        check_places(host, port, config)
        hosts = ModelHosts(specs, lifecycle, {key: getattr(config, key) for key in TRAINING_KEYS})
        controlled = ManagedModels(lambda: hosts.manager)
        super().__init__(hosts, controlled, port=port, host=host, config=config, observer=observer)


def check_labels(specs: Sequence[ModelSpec]) -> None:
    """Raise `ValueError` if two models have one name and version."""
    labels = [spec.label for spec in specs]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"two models are {twice[0]}: give each a name or a version of its own")
