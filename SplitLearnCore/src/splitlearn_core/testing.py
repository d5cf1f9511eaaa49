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

from splitlearn_core.errors import UnsupportedOptionError
from splitlearn_core.parts.port import TrunkPort, TrunkSession, trunk_info
from splitlearn_core.parts.trunk import Trunk
from splitlearn_core.split.split_model import split_model
from splitlearn_core.training.port import ParameterGroup, TrunkTrainingSpec
from splitlearn_core.training.seeding import DropoutSeed
from splitlearn_core.training.trunk_trainer import TrunkTrainer

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


def adapter_spec() -> TrunkTrainingSpec:
    """Return a training of an adapter of one module of `tiny_trunk`, with values that change what it computes."""
    name, generator = "model.layers.2.self_attn.q_proj", torch.Generator().manual_seed(0)
    shapes = {"lora_A": (2, HIDDEN_SIZE), "lora_B": (HIDDEN_SIZE, 2)}
    tensors = {f"{name}.{kind}.default.weight": torch.randn(s, generator=generator) for kind, s in shapes.items()}
    return TrunkTrainingSpec(
        lora={"r": 2, "lora_dropout": 0.5, "target_modules": [name]},
        tensors=tensors,
        optimizer="SGD",
        groups=[ParameterGroup(names=tuple(tensors), options={"lr": 0.5})],
    )


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
    trains: bool = True
    """Whether the port takes trainings of an adapter; with peft, which these tests need then."""

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

    def test_what_trains_is_computed_with_as_of_the_last_update(self) -> None:
        """By calls and by sessions of `trained_by`, and by nobody else."""
        if not self.trains:
            return
        trunk, hidden_BTH, seed = tiny_trunk(), random_hidden(2, 5), DropoutSeed(0, 0)
        expected = TrunkTrainer(tiny_trunk(), adapter_spec())
        with self.open_port(trunk) as port:
            training = port.start_training(adapter_spec())
            trained = port.trained_by(training)
            for update_id in range(1, 3):
                expected_BTH = reference(expected.trunk.train(False), hidden_BTH)
                assert not torch.allclose(expected_BTH, reference(trunk, hidden_BTH), atol=1e-2)
                with torch.no_grad():
                    assert torch.equal(trained.compute(hidden_BTH), expected_BTH)
                    assert torch.equal(port.compute(hidden_BTH), reference(trunk, hidden_BTH))
                session = trained.open_session()
                parts = [self._step(session, hidden_BTH[:, :3]), self._step(session, hidden_BTH[:, 3:])]
                session.close()
                self._assert_close(torch.cat(parts, 1), expected_BTH)
                for each in (training, expected):
                    each.forward(update_id, hidden_BTH, dropout=seed)
                    each.backward(update_id, torch.ones_like(hidden_BTH), accumulate=False)
                    each.update(update_id, [{"lr": 0.5}])
            training.close()

    def test_no_gradient_goes_through_what_trains(self) -> None:
        """That of a pass does; here the trunk's own parameters would be left out."""
        if not self.trains:
            return
        hidden_BTH = random_hidden(2, 5).requires_grad_()
        with self.open_port(tiny_trunk()) as port:
            training = port.start_training(adapter_spec())
            output_BTH = port.trained_by(training).compute(hidden_BTH)
            try:
                output_BTH.sum().backward()  # type: ignore[no-untyped-call]
            except UnsupportedOptionError:
                training.close()
                return
        raise AssertionError("a gradient went through a trunk that trains, past its own parameters")

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
