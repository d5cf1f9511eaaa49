"""A function as a session host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from splitlearn_comm.checks import kind_of
from splitlearn_comm.contained import called
from splitlearn_comm.errors import UnsupportedOperationError
from splitlearn_comm.framing.chunks import CHUNK_BYTES
from splitlearn_comm.function import ComputeFunction
from splitlearn_comm.host import SessionHost, refuse_adapter
from splitlearn_comm.messages import Action, ComputeCall, ComputeResult, Forward, KVEntries, ServiceInfo
from splitlearn_comm.worker import WorkerThread

T = TypeVar("T")


class FunctionHost(SessionHost):
    """Serves a `ComputeFunction`: calls one after the other, on one thread of their own unless it is inline.

    A session of it has no state: each forward is a call of `compute`, and the other actions have nothing to do.
    """

    def __init__(self, function: ComputeFunction) -> None:
        self._function = function
        self._compute: Callable[..., Any] = function.compute
        self._accepted = function.accepted_arguments()
        self._worker = None if function.inline else WorkerThread("splitlearn-function")
        self._info: ServiceInfo | None = None

    def get_info(self) -> ServiceInfo:
        """What the function says about itself, asked once."""
        if self._info is None:
            info = self._function.get_info()
            self._info = (
                info if isinstance(info, ServiceInfo) else _info_from(dict(info), type(self._function).__name__)
            )
        return self._info

    async def setup(self) -> None:
        """Set the function up, on the thread it computes on."""
        await self._call(self._function.setup)

    async def teardown(self) -> None:
        """Tear the function down and end its thread."""
        await self._call(self._function.teardown)
        if self._worker is not None:
            await self._worker.shutdown()

    async def compute(self, call: ComputeCall) -> ComputeResult:
        """Call the function with what the client gave."""
        refuse_adapter(call.adapter)
        arguments = self._arguments(
            attention_mask=call.attention_mask,
            position_ids=call.position_ids,
            past_key_values=call.past_key_values,
            use_cache=call.use_cache or None,
        )
        output = await self._run(call.tensor, arguments)
        return ComputeResult(*output) if isinstance(output, tuple) else ComputeResult(output)

    @property
    def accepted(self) -> frozenset[str]:
        """What `compute` takes besides the tensor."""
        return self._accepted

    async def open_session(self, session_id: str, client: str = "", adapter: str = "") -> None:
        """Nothing to do: there is no state."""
        refuse_adapter(adapter)

    async def run_step(self, session_id: str, action: Action) -> torch.Tensor | None:
        """Call the function for a forward; do nothing for the rest."""
        if not isinstance(action, Forward):
            return None
        arguments = self._arguments(attention_mask=action.attention_mask, position_ids=action.position_ids)
        output = await self._run(action.hidden, arguments)
        tensor = output[0] if isinstance(output, tuple) else output
        # Sent in chunks and kept for a repeat: a function may use the memory of what it gave back again.
        is_shared = tensor.nbytes > CHUNK_BYTES and tensor.data_ptr() != action.hidden.data_ptr()
        return tensor.clone() if is_shared else tensor

    async def close_session(self, session_id: str) -> None:
        """Nothing to do: there is no state."""
        return

    def _arguments(self, **given: object) -> dict[str, object]:
        arguments = {name: value for name, value in given.items() if value is not None}
        if not arguments.keys() <= self._accepted:
            raise UnsupportedOperationError(
                f"{self.get_info().name!r} takes no {', '.join(sorted(arguments.keys() - self._accepted))}; "
                f"call without, or let its compute() name them as arguments"
            )
        return arguments

    async def _run(
        self, tensor: torch.Tensor, arguments: dict[str, object]
    ) -> torch.Tensor | tuple[torch.Tensor, KVEntries]:
        output = await self._call(lambda: self._compute(tensor, **arguments))
        return _checked(output, self._accepted)

    async def _call(self, work: Callable[[], T]) -> T:
        if self._worker is None:
            return called(work)
        return await self._worker.run(work)


def _checked(output: object, accepted: frozenset[str]) -> torch.Tensor | tuple[torch.Tensor, KVEntries]:
    """What `compute` returned, if it is what it may return."""
    match output:
        case torch.Tensor():
            return output
        case (torch.Tensor() as tensor, KVEntries() as cache) if "use_cache" in accepted:
            return tensor, cache
    pair = ", or with use_cache a pair (tensor, KVEntries)" if "use_cache" in accepted else ""
    raise TypeError(f"compute() returned {kind_of(output)}, expected a torch.Tensor{pair}")


def _info_from(fields: dict[str, Any], default_name: str) -> ServiceInfo:
    fields.setdefault("name", default_name)
    try:
        return ServiceInfo(**fields)
    except TypeError as error:
        raise TypeError(
            f"get_info() gave a mapping that is no ServiceInfo: {error}; put the rest in 'extra'"
        ) from error
