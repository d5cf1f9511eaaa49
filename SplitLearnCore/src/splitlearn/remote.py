"""The one adapter between a Comm session and the trunk port of Core.

Tensor shapes: B rows, T new tokens, P cached tokens, H hidden size.
"""

from collections import deque
from collections.abc import Sequence
from typing import Self

import torch

from splitlearn_comm import GRPCComputeClient, ServiceInfo
from splitlearn_comm.client import ClientSession
from splitlearn_core import SplitPoints, TrunkInfo, TrunkMismatchError, TrunkPort, TrunkSession, UnsupportedOptionError


class RemoteTrunk(TrunkPort):
    """A trunk on a server.

    Args:
        client: connected to a server that hosts a trunk; closed together with this port.

    Raises:
        TrunkMismatchError: what the server hosts is no trunk.
    """

    def __init__(self, client: GRPCComputeClient) -> None:
        self._client = client
        self._info = trunk_info(client.get_info())
        self._abandoned: deque[ClientSession] = deque()

    @classmethod
    def connect(cls, address: str | Sequence[str]) -> Self:
        """Connect to a server by its address `"host:port"`.

        Raises:
            ServerUnavailableError: nothing answers there.
            TrunkMismatchError: what answers there is no trunk.
        """
        addresses = [address] if isinstance(address, str) else list(address)
        if len(addresses) != 1:
            raise ValueError(f"trunk= takes one address for now; got {len(addresses)}")
        return cls(GRPCComputeClient(addresses[0]))

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

        Raises:
            UnsupportedOptionError: a training forward whose gradient would have to cross the wire.
        """
        self._free_abandoned()
        if training and torch.is_grad_enabled():
            raise UnsupportedOptionError(
                "training through a remote trunk is not there yet: call model.eval(), or leave trunk= out to train "
                "with the trunk in this process"
            )
        sent = hidden_BTH.detach().to(self._info.dtype)
        received = self._client.compute(sent, attention_mask=attention_mask, position_ids=position_ids)
        assert isinstance(received, torch.Tensor)
        return received.to(device=hidden_BTH.device, dtype=hidden_BTH.dtype)

    def open_session(self) -> "RemoteTrunkSession":
        """Open a KV cache on the server."""
        self._free_abandoned()
        session = self._client.session(expected_fingerprint=self._info.fingerprint)
        return RemoteTrunkSession(session, self._info.dtype, self._abandoned)

    def wire_bytes(self) -> int:
        """Return the bytes of all messages sent and received so far, without what HTTP/2 adds."""
        counted = self._client.statistics()
        return counted.bytes_sent + counted.bytes_received

    def close(self) -> None:
        """Close the connection; the server frees its sessions."""
        self._free_abandoned()
        self._client.close()

    def _free_abandoned(self) -> None:
        while self._abandoned:
            self._abandoned.popleft().close()


class RemoteTrunkSession(TrunkSession):
    """A KV cache on a server."""

    def __init__(self, session: ClientSession, dtype: torch.dtype, abandoned: deque[ClientSession]) -> None:
        self._session = session
        self._dtype = dtype
        self._abandoned = abandoned

    @property
    def position(self) -> int:
        """Number of tokens in the cache."""
        return self._session.position

    def step(
        self,
        hidden_BTH: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Append T tokens to the cache."""
        sent = hidden_BTH.detach().to(self._dtype)
        received = self._session.step(sent, attention_mask=attention_mask, position_ids=position_ids)
        return received.to(device=hidden_BTH.device, dtype=hidden_BTH.dtype)

    def reorder(self, indices: torch.Tensor) -> None:
        """Replace the rows of the cache by its rows `indices` [B']."""
        self._session.reorder(indices.tolist())

    def crop(self, num_tokens: int) -> None:
        """Take the last `num_tokens` tokens back."""
        self._session.crop(num_tokens)

    def start_recording(self) -> None:
        """Keep from now on what a later `crop` may need."""
        self._session.start_recording()

    def close(self) -> None:
        """Free the cache on the server."""
        self._session.close()

    def abandon(self) -> None:
        """Leave closing to the port's next call: a finaliser must not wait for a server."""
        self._abandoned.append(self._session)


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
        fingerprint=info.fingerprint,
        max_positions=info.max_positions,
    )
