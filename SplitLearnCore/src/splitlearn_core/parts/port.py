"""What the client model needs from its middle; a Trunk in this process satisfies it as well as a remote one."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Self

import torch

from splitlearn_core.cache.part_cache import PartCache
from splitlearn_core.errors import TrainingError
from splitlearn_core.parts.trunk import Trunk
from splitlearn_core.split.points import SplitPoints
from splitlearn_core.training.no_gradient import joined
from splitlearn_core.training.port import TrunkTraining, TrunkTrainingSpec
from splitlearn_core.training.precision import autocast_on, crosses_unchanged
from splitlearn_core.training.trunk_trainer import TrunkTrainer


@dataclass(frozen=True, kw_only=True)
class TrunkInfo:
    """What a trunk says about itself before the first tensor."""

    split_points: SplitPoints
    """Cut points in the whole model."""
    num_layers: int
    """Number of decoder layers of the whole model."""
    model_type: str
    """Model type in transformers."""
    hidden_size: int
    """Width of the hidden states."""
    dtype: torch.dtype
    """Dtype of the hidden states that it takes and returns."""
    fingerprint: str | None
    """Fingerprint of its checkpoint; None when its weights came from memory."""
    max_positions: int | None
    """Longest sequence in tokens; None where the model has no bound."""


class TrunkSession(ABC):
    """The trunk's half of one KV cache. One user at a time."""

    @property
    @abstractmethod
    def position(self) -> int:
        """Number of tokens in the cache."""

    @abstractmethod
    def step(
        self,
        hidden_BTH: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        training: bool = False,
    ) -> torch.Tensor:
        """Append T tokens to the cache.

        Args:
            hidden_BTH: hidden states [B, T, H] in the trunk's dtype.
            attention_mask: [B, P + T], 1 for tokens and 0 for padding; None without padding.
            position_ids: [B, T]; None to go on from the cache.
            training: run the layers in train mode (dropout).

        Returns:
            Hidden states [B, T, H] in the trunk's dtype.
        """

    @abstractmethod
    def reorder(self, indices: torch.Tensor) -> None:
        """Replace the rows of the cache by its rows `indices` [B'], integer."""

    @abstractmethod
    def crop(self, num_tokens: int) -> None:
        """Take the last `num_tokens` tokens back."""

    @abstractmethod
    def start_recording(self) -> None:
        """Keep from now on what a later `crop` may need."""

    @abstractmethod
    def close(self) -> None:
        """Free the cache. May be called twice."""

    def abandon(self) -> None:
        """Free the cache without waiting for anything; called when the owner was garbage-collected."""
        self.close()


class TrunkPort(ABC):
    """The middle of a split model, wherever it lives."""

    is_differentiable: bool = False
    """Whether gradients go through `compute` by themselves."""

    @property
    @abstractmethod
    def info(self) -> TrunkInfo:
        """What the trunk is."""

    @abstractmethod
    def compute(
        self,
        hidden_BTH: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        training: bool = False,
    ) -> torch.Tensor:
        """Run the middle layers once without a cache; arguments and result as in `TrunkSession.step`."""

    @abstractmethod
    def open_session(self) -> TrunkSession:
        """Open a KV cache on the trunk."""

    def start_training(self, spec: TrunkTrainingSpec) -> TrunkTraining:
        """Train the trunk, or an adapter of it, for this client alone; or only take gradients through it.

        Raises:
            TrainingError: what the specification asks for is not there; as all of it on a port that does not override
                this.
        """
        raise TrainingError(f"no gradient goes through a {type(self).__name__}")

    def trained_by(self, training: TrunkTraining) -> "TrunkPort":
        """Return the trunk with what one of its trainings has made of it, and goes on making of it.

        For forwards that do not train: no gradient goes through it.

        Args:
            training: what `start_training` of this port has returned.

        Raises:
            TrainingError: as of `start_training`.
        """
        raise TrainingError(f"a {type(self).__name__} does not train")

    @abstractmethod
    def close(self) -> None:
        """Let go of connections. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class LocalTrunk(TrunkPort):
    """A Trunk part in this process: the reference, the test double, and the baseline.

    Args:
        trunk: the part.
        is_differentiable: whether gradients flow through it.
    """

    def __init__(self, trunk: Trunk, *, is_differentiable: bool = True) -> None:
        self.trunk = trunk
        self.is_differentiable = is_differentiable

    @property
    def info(self) -> TrunkInfo:
        """What the trunk is."""
        return trunk_info(self.trunk)

    def compute(
        self,
        hidden_BTH: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        training: bool = False,
    ) -> torch.Tensor:
        """Run the middle layers once without a cache."""
        inputs = (attention_mask, position_ids)
        with no_graph_unless(self.is_differentiable):
            received_BTH = run_trunk(self.trunk, hidden_BTH, *inputs, training=training)
        return received_BTH if self.is_differentiable else joined(hidden_BTH, received_BTH)

    def open_session(self) -> "LocalTrunkSession":
        """Open a KV cache in this process."""
        return LocalTrunkSession(self.trunk, is_differentiable=self.is_differentiable)

    def start_training(self, spec: TrunkTrainingSpec) -> TrunkTraining:
        """Train the trunk, or an adapter of it, in this process."""
        return TrunkTrainer(self.trunk, spec)

    def trained_by(self, training: TrunkTraining) -> "LocalTrunk":
        """Return the copy of the trunk that trains."""
        assert isinstance(training, TrunkTrainer), "a training of another port"
        return LocalTrunk(training.trunk, is_differentiable=False)

    def close(self) -> None:
        """Do nothing: there is no connection."""


class LocalTrunkSession(TrunkSession):
    """The cache of a Trunk part in this process; arguments as of `LocalTrunk`."""

    def __init__(self, trunk: Trunk, *, is_differentiable: bool = True) -> None:
        self._trunk = trunk
        self._is_differentiable = is_differentiable
        self._cache: PartCache = trunk.new_cache()

    @property
    def position(self) -> int:
        """Number of tokens in the cache."""
        return self._cache.position

    def step(
        self,
        hidden_BTH: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        training: bool = False,
    ) -> torch.Tensor:
        """Append T tokens to the cache."""
        inputs = (attention_mask, position_ids)
        with no_graph_unless(self._is_differentiable):
            received_BTH = run_trunk(self._trunk, hidden_BTH, *inputs, training=training, cache=self._cache)
        return received_BTH if self._is_differentiable else joined(hidden_BTH, received_BTH)

    def reorder(self, indices: torch.Tensor) -> None:
        """Replace the rows of the cache by its rows `indices` [B']."""
        self._cache.reorder_cache(indices)

    def crop(self, num_tokens: int) -> None:
        """Take the last `num_tokens` tokens back."""
        self._cache.crop(-num_tokens)

    def start_recording(self) -> None:
        """Keep from now on what a later `crop` may need."""
        self._cache.activate_past_recording()

    def close(self) -> None:
        """Free the cache."""
        self._cache = self._trunk.new_cache()


def no_graph_unless(is_differentiable: bool) -> AbstractContextManager[object]:
    """Make no graph in the block, unless what runs in it is differentiable."""
    return nullcontext() if is_differentiable else torch.no_grad()


def run_trunk(
    trunk: Trunk,
    hidden_BTH: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    *,
    training: bool,
    cache: PartCache | None = None,
) -> torch.Tensor:
    """Run a Trunk part in the mode of its client; device and dtype are converted on the way there and back.

    Under autocast the dtype is not: the layers get and give what those of a whole model do.
    """
    if trunk.training != training:
        trunk.train(training)
    mask, positions = (t if t is None else t.to(trunk.device) for t in (attention_mask, position_ids))
    is_unchanged = crosses_unchanged(trunk.dtype, autocast_on(trunk.device))
    sent_BTH = hidden_BTH.to(trunk.device, hidden_BTH.dtype if is_unchanged else trunk.dtype)
    received_BTH = trunk(sent_BTH, mask, positions, past_key_values=cache)
    assert isinstance(received_BTH, torch.Tensor)
    return received_BTH.to(hidden_BTH.device, received_BTH.dtype if is_unchanged else hidden_BTH.dtype)


def trunk_info(trunk: Trunk) -> TrunkInfo:
    """Describe a Trunk part."""
    return TrunkInfo(
        split_points=trunk.split_points,
        num_layers=trunk.cut.num_layers,
        model_type=trunk.config.model_type,
        hidden_size=trunk.hidden_size,
        dtype=trunk.dtype,
        fingerprint=trunk.fingerprint,
        max_positions=trunk.max_positions,
    )
