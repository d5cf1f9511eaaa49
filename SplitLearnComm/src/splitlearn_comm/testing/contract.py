"""What every `SessionHost` has to keep, as tests to inherit from.

::

    class TestMyHost(SessionHostContract):
        def make_host(self): return MyHost()
        def make_hidden(self, batch, num_tokens): return torch.randn(batch, num_tokens, 16)

B batch, T tokens, H hidden size.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import torch

from splitlearn_comm.errors import AdapterNotFoundError, SessionNotFoundError
from splitlearn_comm.host import SessionHost
from splitlearn_comm.messages import Action, ComputeCall, Crop, Forward, Reorder, ServiceInfo, StartRecording


class SessionHostContract(ABC):
    """Inherit from it in a class whose name begins with `Test`, and say how to make a host and an input for it."""

    tolerance: float = 0.0
    """By how much results may differ that are computed in another order, absolutely."""

    @abstractmethod
    def make_host(self) -> SessionHost:
        """A new host."""

    @abstractmethod
    def make_hidden(self, batch: int, num_tokens: int) -> torch.Tensor:
        """Random hidden states [B, T, H] that the host takes."""

    def test_info_is_given_after_setup(self) -> None:
        """A host says what it is."""

        async def check(host: SessionHost) -> None:
            assert isinstance(host.get_info(), ServiceInfo)

        self._run(check)

    def test_steps_add_up_to_one_forward(self) -> None:
        """Cached equals uncached."""
        hidden_BTH = self.make_hidden(2, 7)

        async def check(host: SessionHost) -> None:
            whole = await _steps(host, "whole", Forward(hidden_BTH))
            prompt, token, rest = hidden_BTH[:, :4], hidden_BTH[:, 4:5], hidden_BTH[:, 5:]
            parts = await _steps(host, "parts", Forward(prompt), Forward(token), Forward(rest))
            self._assert_close(parts, whole)

        self._run(check)

    def test_a_stateless_call_equals_a_session(self) -> None:
        """Compute and one forward are the same."""
        hidden_BTH = self.make_hidden(2, 5)

        async def check(host: SessionHost) -> None:
            result = await host.compute(ComputeCall(hidden_BTH))
            self._assert_close(result.tensor, await _steps(host, "a", Forward(hidden_BTH)))
            assert result.past_key_values is None

        self._run(check)

    def test_the_cache_may_travel_with_the_call(self) -> None:
        """Two calls with the cache handed back equal one call."""
        hidden_BTH = self.make_hidden(2, 5)

        async def check(host: SessionHost) -> None:
            whole = await host.compute(ComputeCall(hidden_BTH))
            first = await host.compute(ComputeCall(hidden_BTH[:, :3], use_cache=True))
            assert first.past_key_values is not None
            assert first.past_key_values.position == 3
            again = ComputeCall(hidden_BTH[:, 3:], past_key_values=first.past_key_values, use_cache=True)
            second = await host.compute(again)
            assert second.past_key_values is not None
            assert second.past_key_values.position == 5
            self._assert_close(torch.cat((first.tensor, second.tensor), dim=1), whole.tensor)

        self._run(check)

    def test_crop_takes_tokens_back(self) -> None:
        """Tokens that were cropped leave no trace."""
        hidden_BTH, wrong_BTH = self.make_hidden(1, 6), self.make_hidden(1, 2)

        async def check(host: SessionHost) -> None:
            whole = await _steps(host, "whole", Forward(hidden_BTH))
            actions = (Forward(hidden_BTH[:, :4]), StartRecording(), Forward(wrong_BTH), Crop(2))
            parts = await _steps(host, "parts", *actions, Crop(0), Forward(hidden_BTH[:, 4:]))
            self._assert_close(torch.cat((parts[:, :4], parts[:, 6:]), dim=1), whole)

        self._run(check)

    def test_reorder_moves_rows(self) -> None:
        """Rows go where the indices say, twice if they say so, and the batch may grow."""
        hidden_BTH, next_BTH = self.make_hidden(2, 3), self.make_hidden(3, 1)
        indices = [1, 0, 1]

        async def check(host: SessionHost) -> None:
            whole = await _steps(host, "whole", Forward(torch.cat((hidden_BTH[indices], next_BTH), dim=1)))
            await _steps(host, "rows", Forward(hidden_BTH))
            await host.run_step("rows", Reorder(indices))
            output = await host.run_step("rows", Forward(next_BTH))
            assert output is not None
            self._assert_close(output, whole[:, -1:])

        self._run(check)

    def test_sessions_do_not_see_each_other(self) -> None:
        """Steps of two sessions at the same time, and results as alone."""
        first_BTH, second_BTH = self.make_hidden(1, 4), self.make_hidden(1, 4)

        async def check(host: SessionHost) -> None:
            alone = [await _steps(host, name, Forward(x)) for name, x in (("a", first_BTH), ("b", second_BTH))]
            names = (("c", first_BTH), ("d", second_BTH))
            both = await asyncio.gather(*(_steps(host, name, *_one_by_one(x)) for name, x in names))
            for result, expected in zip(both, alone, strict=True):
                self._assert_close(result, expected)

        self._run(check)

    def test_padding_on_the_left_changes_nothing(self) -> None:
        """A row with padding before it gives what it gives without."""
        hidden_BTH, num_padding = self.make_hidden(1, 6), 2
        mask_BK = torch.tensor([[0] * num_padding + [1] * 4])
        positions_BT = (mask_BK.cumsum(1) - 1).clamp(min=0)

        async def check(host: SessionHost) -> None:
            alone = await _steps(host, "alone", Forward(hidden_BTH[:, num_padding:]))
            prompt = Forward(hidden_BTH[:, :5], mask_BK[:, :5], positions_BT[:, :5])
            padded = await _steps(host, "padded", prompt, Forward(hidden_BTH[:, 5:], mask_BK, positions_BT[:, 5:]))
            self._assert_close(padded[:, num_padding:], alone)

        self._run(check)

    def test_an_adapter_that_nobody_has_is_not_found(self) -> None:
        """Neither by a session, of which nothing is left, nor by a call; without one both go on."""
        hidden_BTH = self.make_hidden(1, 2)

        async def check(host: SessionHost) -> None:
            refused: list[Callable[[], Awaitable[object]]] = [
                lambda: host.open_session("a", "somebody", "nobody's"),
                lambda: host.compute(ComputeCall(hidden_BTH, adapter="nobody's", client="somebody")),
            ]
            for ask in refused:
                try:
                    await ask()
                except AdapterNotFoundError:
                    continue
                raise AssertionError("an adapter that nobody has was taken")
            expected = await host.compute(ComputeCall(hidden_BTH, client="somebody"))
            self._assert_close(await _steps(host, "a", Forward(hidden_BTH)), expected.tensor)

        self._run(check)

    def test_closing_is_final_and_may_be_repeated(self) -> None:
        """A closed session takes no steps; closing it again, or one that never was, is no error."""
        hidden_BTH = self.make_hidden(1, 2)

        async def check(host: SessionHost) -> None:
            await _steps(host, "a", Forward(hidden_BTH))
            for name in ("a", "a", "never opened"):
                await host.close_session(name)
            try:
                await host.run_step("a", Forward(hidden_BTH))
            except SessionNotFoundError:
                return
            raise AssertionError("a step of a closed session was done")

        self._run(check)

    def _assert_close(self, actual_BTH: torch.Tensor, expected_BTH: torch.Tensor) -> None:
        torch.testing.assert_close(actual_BTH, expected_BTH, rtol=0, atol=self.tolerance)

    def _run(self, check: Callable[[SessionHost], Awaitable[None]]) -> None:
        async def run() -> None:
            async with _set_up(self.make_host()) as host:
                await check(host)

        asyncio.run(run())


@asynccontextmanager
async def _set_up(host: SessionHost) -> AsyncIterator[SessionHost]:
    await host.setup()
    try:
        yield host
    finally:
        await host.teardown()


async def _steps(host: SessionHost, session_id: str, *actions: Action) -> torch.Tensor:
    """Open a session, do the steps; what the forwards gave, one after the other."""
    await host.open_session(session_id)
    outputs = [await host.run_step(session_id, action) for action in actions]
    return torch.cat([output for output in outputs if output is not None], dim=1)


def _one_by_one(hidden_BTH: torch.Tensor) -> list[Forward]:
    return [Forward(hidden_BTH[:, index : index + 1]) for index in range(hidden_BTH.shape[1])]
