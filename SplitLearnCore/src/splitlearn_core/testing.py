"""What every `TrunkPort` has to keep, as tests to inherit from.

::

    class TestMyTrunk(TrunkPortContract):
        @contextmanager
        def open_port(self, trunk):
            with MyServer(trunk) as server, MyPort(server.address) as port:
                yield port

Tensor shapes: B rows, T tokens, P cached tokens, H hidden size.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from splitlearn_core.parts.port import TrunkPort, TrunkSession, trunk_info
from splitlearn_core.parts.trunk import Trunk
from splitlearn_core.split.split_model import split_model

HIDDEN_SIZE = 32
MAX_POSITIONS = 64


def tiny_trunk(seed: int = 0) -> Trunk:
    """Make a float32 Trunk of four random layers, cut out of a Llama of six."""
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        whole = LlamaForCausalLM(config).eval()
    _, trunk, _ = split_model(whole, (1, 5))
    return trunk


def random_hidden(batch: int, num_tokens: int, seed: int = 0) -> torch.Tensor:
    """Return hidden states [B, T, H] in float32; the same for the same seed."""
    return torch.randn(batch, num_tokens, HIDDEN_SIZE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def reference(
    trunk: Trunk,
    hidden_BTH: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run the part itself once over a whole sequence."""
    output = trunk(hidden_BTH, attention_mask, position_ids)
    assert isinstance(output, torch.Tensor)
    return output


class TrunkPortContract(ABC):
    """Inherit from it in a class whose name begins with `Test`, and say how to reach a trunk through your port."""

    tolerance: float = 1e-5
    """By how much results may differ that are computed in another order, absolutely; values are around 1."""

    @abstractmethod
    def open_port(self, trunk: Trunk) -> AbstractContextManager[TrunkPort]:
        """A port to this trunk for as long as the block lasts."""

    def test_it_says_what_the_trunk_is(self) -> None:
        """Cut points, sizes, dtype and fingerprint are the part's own."""
        trunk = tiny_trunk()
        with self.open_port(trunk) as port:
            assert port.info == trunk_info(trunk)

    def test_a_call_without_a_cache_is_the_part_itself(self) -> None:
        """Bit for bit."""
        trunk, hidden_BTH = tiny_trunk(), random_hidden(2, 5)
        with self.open_port(trunk) as port, torch.no_grad():
            assert torch.equal(port.compute(hidden_BTH), reference(trunk, hidden_BTH))

    def test_padding_crosses_with_a_call(self) -> None:
        """Mask and positions arrive."""
        trunk, hidden_BTH = tiny_trunk(), random_hidden(2, 5)
        mask_BT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        expected = reference(trunk, hidden_BTH, mask_BT, positions_BT)
        with self.open_port(trunk) as port, torch.no_grad():
            assert torch.equal(port.compute(hidden_BTH, mask_BT, positions_BT), expected)
            assert not torch.allclose(port.compute(hidden_BTH)[0], expected[0])

    def test_steps_of_a_session_add_up(self) -> None:
        """A prompt and single tokens give what one call gives, and the position counts them."""
        trunk, hidden_BTH = tiny_trunk(), random_hidden(2, 7)
        with self.open_port(trunk) as port:
            session = port.open_session()
            assert session.position == 0
            outputs = [self._step(session, hidden_BTH[:, :4])]
            for index in range(4, 7):
                outputs.append(self._step(session, hidden_BTH[:, index : index + 1]))
                assert session.position == index + 1
            session.close()
        self._assert_close(torch.cat(outputs, 1), reference(trunk, hidden_BTH))

    def test_padding_crosses_with_a_step(self) -> None:
        """A padded row gives what it gives alone."""
        trunk, hidden_BTH = tiny_trunk(), random_hidden(1, 6)
        mask_BK = torch.tensor([[0, 0, 1, 1, 1, 1]])
        positions_BT = (mask_BK.cumsum(1) - 1).clamp(min=0)
        with self.open_port(trunk) as port:
            session = port.open_session()
            first = self._step(session, hidden_BTH[:, :5], mask_BK[:, :5], positions_BT[:, :5])
            last = self._step(session, hidden_BTH[:, 5:], mask_BK, positions_BT[:, 5:])
            session.close()
        self._assert_close(torch.cat((first, last), 1)[:, 2:], reference(trunk, hidden_BTH[:, 2:]))

    def test_cropped_tokens_leave_no_trace(self) -> None:
        """Guesses that were taken back, as in assisted decoding."""
        trunk, hidden_BTH, guesses_BTH = tiny_trunk(), random_hidden(1, 6), random_hidden(1, 2, seed=1)
        with self.open_port(trunk) as port:
            session = port.open_session()
            session.start_recording()
            self._step(session, hidden_BTH[:, :4])
            self._step(session, guesses_BTH)
            session.crop(2)
            assert session.position == 4
            last = self._step(session, hidden_BTH[:, 4:])
            session.close()
        self._assert_close(last, reference(trunk, hidden_BTH)[:, 4:])

    def test_rows_go_where_the_indices_say(self) -> None:
        """As in beam search; rows may come twice, and their number may change."""
        trunk, hidden_BTH, next_BTH = tiny_trunk(), random_hidden(2, 3), random_hidden(3, 1, seed=1)
        indices = torch.tensor([1, 0, 1])
        with self.open_port(trunk) as port:
            session = port.open_session()
            self._step(session, hidden_BTH)
            session.reorder(indices)
            last = self._step(session, next_BTH)
            session.close()
        self._assert_close(last, reference(trunk, torch.cat((hidden_BTH[indices], next_BTH), 1))[:, -1:])

    def test_sessions_do_not_see_each_other(self) -> None:
        """Steps of two sessions in turn give what each gives alone."""
        trunk = tiny_trunk()
        hidden = [random_hidden(1, 5, seed) for seed in range(2)]
        outputs: list[list[torch.Tensor]] = [[], []]
        with self.open_port(trunk) as port:
            sessions = [port.open_session() for _ in hidden]
            for index in range(5):
                for session, sequence, output in zip(sessions, hidden, outputs, strict=True):
                    output.append(self._step(session, sequence[:, index : index + 1]))
            for session in sessions:
                session.close()
        for sequence, output in zip(hidden, outputs, strict=True):
            self._assert_close(torch.cat(output, 1), reference(trunk, sequence))

    def test_a_call_in_between_does_not_touch_a_session(self) -> None:
        """Cached and uncached use may be mixed."""
        trunk, hidden_BTH = tiny_trunk(), random_hidden(1, 4)
        with self.open_port(trunk) as port, torch.no_grad():
            session = port.open_session()
            first = self._step(session, hidden_BTH[:, :3])
            port.compute(random_hidden(2, 6, seed=1))
            last = self._step(session, hidden_BTH[:, 3:])
            session.close()
        self._assert_close(torch.cat((first, last), 1), reference(trunk, hidden_BTH))

    def test_sessions_and_ports_may_be_closed_twice(self) -> None:
        """And a session may be abandoned by a finaliser."""
        with self.open_port(tiny_trunk()) as port:
            session = port.open_session()
            session.close()
            session.close()
            port.open_session().abandon()
            port.close()
            port.close()

    def _step(
        self,
        session: TrunkSession,
        hidden_BTH: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        with torch.no_grad():
            return session.step(hidden_BTH, attention_mask, position_ids)

    def _assert_close(self, actual_BTH: torch.Tensor, expected_BTH: torch.Tensor) -> None:
        torch.testing.assert_close(actual_BTH, expected_BTH, rtol=0, atol=self.tolerance)
