"""The plan of a training run: its length, its batches, its learning rates.

The learning rate follows a warmup-stable-decay schedule (Hu et al. 2024, MiniCPM, https://arxiv.org/abs/2404.06395): it
can stay level until it is known when to stop.
"""

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Length, batches and learning rates of one run; the defaults are those of the model that ships.

    The lengths may be changed when a run is resumed.
    """

    steps: int = 1450
    """Steps in all."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from zero."""
    decay_steps: int = 400
    """Steps at the end over which it falls to zero, linearly."""
    long_steps: int = 400
    """Steps at the end that use blocks of `long_block` tokens, so that every position is trained."""
    short_block: int = 256
    long_block: int = 512
    batch_tokens: int = 2048
    shards: int = 4
    """Parts of a batch, taken by the workers one after another."""
    workers: int = 2
    width: int = 160
    vocab_size: int = 4096
    num_layers: int = 8
    shallow_layers: int = 4
    shallow_steps: int = 1000
    """Steps at the beginning that train only `shallow_layers` layers."""
    optimizer: str = "muon"
    matrix_lr: float = 0.02
    other_lr: float = 4e-3
    seed: int = 1
    checkpoint_every: int = 100
    evaluate_every: int = 500

    def block_at(self, step: int) -> int:
        """Tokens a sequence has at `step`."""
        return self.long_block if step >= self.steps - self.long_steps else self.short_block

    def layers_at(self, step: int) -> int:
        """Layers the model has at `step`."""
        return self.shallow_layers if step < self.shallow_steps else self.num_layers

    def rate_at(self, step: int) -> float:
        """The learning rate at `step` as a share of its peak."""
        rise = (step + 1) / self.warmup_steps
        fall = (self.steps - step) / max(1, self.decay_steps)
        return max(0.0, min(1.0, rise, fall))

    def check_resumes(self, earlier: "TrainingPlan") -> None:
        """Refuse to continue a run whose model, batches or optimizer were others; its length may change."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(earlier, field.name)
            if mine != theirs and field.name not in _MAY_CHANGE:
                raise SystemExit(
                    f"The checkpoint was made with {field.name}={theirs!r}, this run has {mine!r}: "
                    "give the same value, or another --directory."
                )


_MAY_CHANGE = frozenset(
    {"steps", "decay_steps", "long_steps", "shallow_steps", "workers", "checkpoint_every", "evaluate_every"}
)
