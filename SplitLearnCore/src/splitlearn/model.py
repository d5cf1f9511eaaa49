"""`SplitModelForCausalLM`: from a model's name and a trunk's address to a Hugging Face model."""

import re
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from splitlearn.errors import AddressError, needing
from splitlearn_core import LocalTrunk, SplitModel, Trunk, TrunkPort, compile_part, load_client_model

if TYPE_CHECKING:
    from splitlearn.remote import RemoteTrunk


ADDRESS = re.compile(r".+:\d+|unix:.+")
"""Host and port, or a Unix socket; whether there is such a host is found out by connecting."""
NEEDS_COMM = "a trunk on a server needs SplitLearnComm: pip install splitlearn-core[client] splitlearn-comm[client]"


class SplitModelForCausalLM:
    """Loads the client's side of a split model, as `AutoModelForCausalLM` loads a whole one.

    What it returns is an instance of the architecture's own class (`GPT2LMHeadModel`, …) and of `SplitModel`.
    """

    def __init__(self) -> None:
        raise TypeError("use SplitModelForCausalLM.from_pretrained(model_id, trunk=...)")

    @classmethod
    def from_pretrained(
        cls,
        model_id: str = "builtin",
        *,
        trunk: str | Sequence[str] | TrunkPort | Trunk | None = None,
        split_points: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        connection: Mapping[str, Any] | None = None,
        adapter: str | None = None,
        compile: bool = False,
    ) -> SplitModel:
        """Load Bottom and Top here and join them to a trunk.

        Args:
            model_id: `"builtin"`, a local directory in Hugging Face format, or a hub id.
            trunk: the address `"host:port"` of a server, a list of those of several that host the same, a `Trunk` part
                or a `TrunkPort` in this process; None to load the trunk into this process.
            split_points: `(a, b)`; None for the trunk's own.
            device: where the weights go; None for the CPU.
            dtype: dtype of the weights; None for float32 on the CPU and the checkpoint's own elsewhere.
            attn_implementation: as in transformers; None for what the model prefers.
            revision: branch, tag or commit on the hub.
            connection: options of the connection to a server, as `splitlearn_comm.GRPCComputeClient` takes them:
                `{"token": ..., "tls": ClientTLS(ca=...), "timeout_s": ...}`. With `{"codec": "auto", "max_kl": 1e-3}`
                what each codec loses is measured here, on a short text.
            adapter: name of an adapter that this client has published at the server (`run.publish_adapter`), or trains
                there now: with it the trunk computes and generates. None for none.
            compile: run the layers that are loaded here through `torch.compile`, which takes seconds to minutes now;
                where that cannot be had they run as they are, and a warning says why.

        Raises:
            CheckpointError: no such checkpoint, or its weights are missing or truncated.
            SplitPointError: cut points out of order or out of range.
            TrunkMismatchError: the trunk is of another model, another checkpoint, or cut elsewhere.
            UnsupportedModelError: the model cannot be cut exactly.
            ServerUnavailableError: (of splitlearn_comm) nothing answers at the address.
            MissingPackageError: a trunk on a server needs SplitLearnComm, and it is not installed.
            AdapterNotFoundError: (of splitlearn_comm) this client has no such adapter at the server.
            AuthenticationError: (of splitlearn_comm) the server wants a token, and this is none it knows.
            AddressError: an address without a port.
            UnsupportedOptionError: `max_kl` for a checkpoint without a tokenizer.
            TypeError: `trunk` is none of these, or `connection` or `adapter` was given without an address, or an option
                is unknown.
        """
        load = partial(
            load_client_model,
            model_id,
            split_points=split_points,
            device=device,
            dtype=dtype,
            attn_implementation=attn_implementation,
            revision=revision,
        )
        if trunk is None or isinstance(trunk, (TrunkPort, Trunk)):
            if connection or adapter:
                name = "connection=" if connection else "adapter="
                raise TypeError(f"{name} goes with the address of a server; trunk={type(trunk).__name__} has none")
            model = load(trunk=trunk)
            if compile:
                compile_loaded(model, with_trunk=trunk is None)
            return model
        port = connect(trunk, connection, adapter)
        try:
            text = port.text_to_measure(model_id, revision)
            model = load(trunk=port)
            if text is not None:
                port.measure_losses(model, text)
            if compile:
                compile_loaded(model, with_trunk=False)
        except BaseException:
            port.close()
            raise
        # Nobody else holds this connection: it goes with the model.
        weakref.finalize(model, port.hang_up)
        return model


def compile_loaded(model: SplitModel, *, with_trunk: bool) -> None:
    """Compile the layers of a client model, and of the trunk that was loaded with it."""
    compile_part(model)
    if with_trunk and isinstance(model.trunk, LocalTrunk):
        compile_part(model.trunk.trunk)


def connect(address: object, options: Mapping[str, Any] | None = None, adapter: str | None = None) -> "RemoteTrunk":
    """Connect to a trunk on a server; arguments and errors as in `SplitModelForCausalLM.from_pretrained`.

    Raises:
        MissingPackageError: SplitLearnComm is not installed.
    """
    if not isinstance(address, Sequence):
        raise TypeError(f"trunk= takes an address 'host:port', a Trunk or a TrunkPort; got {type(address).__name__}")
    for one in [address] if isinstance(address, str) else address:
        if not ADDRESS.fullmatch(one):
            # gRPC would take port 443, and say that nothing listens there.
            raise AddressError(f"a trunk's address is host:port, such as localhost:50051; got {one!r}")
    with needing(NEEDS_COMM):
        from splitlearn.remote import RemoteTrunk
    return RemoteTrunk.connect(address, adapter, **(options or {}))
