"""The one adapter between a Comm session and the trunk port of Core.

Tensor shapes: B rows, T new tokens, P cached tokens, H hidden size.
"""

import contextlib
from collections import deque
from collections.abc import Sequence
from typing import NoReturn, Self, Unpack

import torch

from splitlearn.remote_training import LOST_TO_OTHERS, RemoteTraining, saying_that_it_is_lost
from splitlearn.wire_loss import measure_losses, sample_text, with_losses
from splitlearn_comm import CommError, GRPCComputeClient, ServiceInfo
from splitlearn_comm.client import ClientOptions, ClientSession
from splitlearn_comm.codec import CodecChoice
from splitlearn_comm.training import FreeAdapter
from splitlearn_core import (
    SplitModel,
    SplitPoints,
    TrainingError,
    TrunkInfo,
    TrunkMismatchError,
    TrunkPort,
    TrunkSession,
    UnsupportedOptionError,
)
from splitlearn_core.training.no_gradient import NO_GRADIENT, joined
from splitlearn_core.training.port import TrunkTraining, TrunkTrainingSpec

FINGERPRINT_SEPARATOR = ":"
"""Between the checkpoint's fingerprint and the cut points, in what a trunk server calls its fingerprint."""


class RemoteTrunk(TrunkPort):
    """A trunk on a server.

    Args:
        client: connected to a server that hosts a trunk; closed together with this port.
        losses: where the client looks up what each lossy codec costs, to be filled by `measure_losses`; None for a
            client that needs no such thing.
        adapter: name of the client's adapter at the server, with which to compute; None for none.
        lost: errors by which the server says that what trains under that name is lost; none where nothing does.

    Raises:
        TrunkMismatchError: what the server hosts is no trunk.
    """

    def __init__(
        self,
        client: GRPCComputeClient,
        losses: dict[str, float] | None = None,
        adapter: str | None = None,
        lost: tuple[type[CommError], ...] = (),
    ) -> None:
        self._client = client
        self._adapter = adapter
        self._lost = lost
        self._losses = losses
        self._info = trunk_info(client.get_info())
        # Said again with every session and call: another server may listen at this address by then.
        self._service_fingerprint = client.get_info().fingerprint
        self._abandoned: deque[ClientSession] = deque()

    @classmethod
    def connect(
        cls, address: str | Sequence[str], adapter: str | None = None, **options: Unpack[ClientOptions]
    ) -> Self:
        """Connect to a server by its address `"host:port"`, or to several that host the same trunk.

        A session that loses its server goes on at another of them. The options are those of `GRPCComputeClient`; with
        codec "auto" and `max_kl` nothing lossy is chosen before `measure_losses`.

        Raises:
            ServerUnavailableError: nothing answers there.
            TrunkMismatchError: what answers there is no trunk.
            AdapterNotFoundError: (of splitlearn_comm) this client has no such adapter there.
        """
        losses: dict[str, float] = {}
        measured = with_losses(options, losses)
        client = GRPCComputeClient(address, **(measured or options))
        try:
            port = cls(client, None if measured is None else losses, adapter)
            if adapter:
                port.open_session().close()
        except BaseException:
            client.close()
            raise
        return port

    @property
    def info(self) -> TrunkInfo:
        """What the trunk said about itself when it was connected."""
        return self._info

    def compute(
        self,
        hidden_BTH: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        training: bool = False,
    ) -> torch.Tensor:
        """Run the middle layers once without a cache; no gradient comes back.

        They run in the trunk's own dtype, whatever autocast is on here: only the passes of a training say which.

        Raises:
            UnsupportedOptionError: a training forward whose gradient would have to cross the wire.
            TrainingLostError: the trunk trains, and its server knows nothing of that any more.
        """
        self._free_abandoned()
        refuse_training(training)
        with saying_that_it_is_lost(self._lost):
            received_BTH = self._client.compute(
                hidden_BTH.detach().to(self._info.dtype),
                attention_mask=attention_mask,
                position_ids=position_ids,
                expected_fingerprint=self._service_fingerprint,
                adapter=self._adapter,
            )
        return joined(hidden_BTH, received_BTH)

    def open_session(self) -> "RemoteTrunkSession":
        """Open a KV cache on the server; raises `TrainingLostError` as `compute`, and so do its steps."""
        self._free_abandoned()
        with saying_that_it_is_lost(self._lost):
            session = self._client.session(self._service_fingerprint, adapter=self._adapter)
        return RemoteTrunkSession(session, self._info.dtype, self._abandoned, self._lost)

    def start_training(self, spec: TrunkTrainingSpec) -> RemoteTraining:
        """Train the trunk on its server, for this client alone, or only take gradients through it.

        Raises:
            TrainingError: what the specification asks for is not there, or this port computes with an adapter already.
            CommError: the server refuses it for another reason.
        """
        if self._adapter:
            raise TrainingError(
                f"this trunk computes with the adapter {self._adapter!r}, and no gradient goes through that: load the "
                "model without adapter= to train, and take up a checkpoint with run.resume"
            )
        self._free_abandoned()
        return RemoteTraining(self._client.session(expected_fingerprint=self._service_fingerprint), spec)

    def trained_by(self, training: TrunkTraining) -> "RemoteTrunk":
        """Return the trunk on its server with what trains there of it."""
        assert isinstance(training, RemoteTraining), "a training of another port"
        port = RemoteTrunk(self._client, self._losses, training.adapter, LOST_TO_OTHERS)
        port._abandoned = self._abandoned  # this one's calls free what that one's sessions leave
        return port

    def free_adapter(self, name: str) -> None:
        """Free an adapter that this client has published; what computes with it ends.

        Raises:
            AdapterNotFoundError: (of splitlearn_comm) it has none of that name.
        """
        # With the adapter: of several servers this goes to the one that has it.
        with self._client.session(self._service_fingerprint, adapter=name) as session:
            session.train(FreeAdapter(name))

    def text_to_measure(self, model_id: str, revision: str | None) -> torch.Tensor | None:
        """Return the token ids [1, T] to measure losses on; None where none are needed.

        Raises:
            UnsupportedOptionError: they are, and the checkpoint has no tokenizer.
        """
        return None if self._losses is None else sample_text(model_id, revision)

    def measure_losses(self, model: SplitModel, ids_1T: torch.Tensor) -> None:
        """Find out what each lossy codec costs a model whose trunk this is, on a text [1, T]; one call of the trunk."""
        assert self._losses is not None, "asked only where text_to_measure gives a text"
        self._losses.update(measure_losses(model, ids_1T, self._client.get_info().codecs))

    def codec_choices(self) -> dict[str, CodecChoice]:
        """Return what codec "auto" has chosen up to now, and why, by the address of the server."""
        return self._client.codec_choices()

    def wire_bytes(self) -> int:
        """Return the bytes of all messages sent and received so far, without what HTTP/2 adds."""
        counted = self._client.statistics()
        return counted.bytes_sent + counted.bytes_received

    def close(self) -> None:
        """Close the connection; the server frees its sessions."""
        self._free_abandoned()
        self._client.close()

    def hang_up(self) -> None:
        """Close the connection without a word; the server frees the sessions after its detached timeout."""
        self._client.close()

    def __reduce__(self) -> NoReturn:
        raise UnsupportedOptionError(
            "a trunk on a server is a connection and cannot be copied or pickled: copy model.state_dict(), or load the "
            "model again with from_pretrained(..., trunk=address)"
        )

    def _free_abandoned(self) -> None:
        with contextlib.suppress(IndexError):  # empty, or emptied by another thread
            while True:
                self._abandoned.popleft().close()


class RemoteTrunkSession(TrunkSession):
    """A KV cache on a server.

    Args:
        session: just opened.
        dtype: of the trunk's hidden states.
        abandoned: where it goes when nobody holds it any more.
        lost: errors that say that the training is lost which it computes with; none where it does with none.
    """

    def __init__(
        self,
        session: ClientSession,
        dtype: torch.dtype,
        abandoned: deque[ClientSession],
        lost: tuple[type[CommError], ...] = (),
    ) -> None:
        self._session = session
        self._dtype = dtype
        self._abandoned = abandoned
        self._lost = lost

    @property
    def position(self) -> int:
        """Number of tokens in the cache."""
        return self._session.position

    def step(
        self,
        hidden_BTH: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        training: bool = False,
    ) -> torch.Tensor:
        """Append T tokens to the cache; no gradient comes back. Autocast as in `RemoteTrunk.compute`.

        Raises:
            UnsupportedOptionError: a training forward whose gradient would have to cross the wire.
        """
        refuse_training(training)
        sent_BTH = hidden_BTH.detach().to(self._dtype)
        with saying_that_it_is_lost(self._lost):
            received_BTH = self._session.step(sent_BTH, attention_mask=attention_mask, position_ids=position_ids)
        return joined(hidden_BTH, received_BTH)

    def reorder(self, indices: torch.Tensor) -> None:
        """Replace the rows of the cache by its rows `indices` [B']."""
        with saying_that_it_is_lost(self._lost):
            self._session.reorder(indices.tolist())

    def crop(self, num_tokens: int) -> None:
        """Take the last `num_tokens` tokens back."""
        with saying_that_it_is_lost(self._lost):
            self._session.crop(num_tokens)

    def start_recording(self) -> None:
        """Keep from now on what a later `crop` may need."""
        with saying_that_it_is_lost(self._lost):
            self._session.start_recording()

    def close(self) -> None:
        """Free the cache on the server."""
        self._session.close()

    def abandon(self) -> None:
        """Leave closing to the port's next call: a finaliser must not wait for a server."""
        self._abandoned.append(self._session)


def refuse_training(training: bool) -> None:
    """Refuse a forward whose gradient would have to cross the wire, before anything is sent.

    Raises:
        UnsupportedOptionError: train mode with gradients enabled.
    """
    if training and torch.is_grad_enabled():
        raise UnsupportedOptionError(NO_GRADIENT)


def trunk_info(info: ServiceInfo) -> TrunkInfo:
    """Turn what a server says about itself into what the client model asks.

    Raises:
        TrunkMismatchError: the server hosts something else than a trunk.
    """
    if (
        info.split_points is None
        or info.num_layers is None
        or info.model_type is None
        or info.hidden_size is None
        or info.dtype is None
    ):
        raise TrunkMismatchError(
            f"the server hosts {info.name!r}, which is no trunk of a split model: start one with ManagedServer(model)"
        )
    return TrunkInfo(
        split_points=SplitPoints(*info.split_points),
        num_layers=info.num_layers,
        model_type=info.model_type,
        hidden_size=info.hidden_size,
        dtype=info.dtype,
        fingerprint=info.fingerprint and info.fingerprint.partition(FINGERPRINT_SEPARATOR)[0],
        max_positions=info.max_positions,
    )
