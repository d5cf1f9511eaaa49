"""What each lossy codec costs a model, measured, for `connection={"codec": "auto", "max_kl": ...}`.

A short text goes through Bottom, trunk and Top once, a row of the batch for each codec: coded and decoded in front of
the trunk and behind it, as on the wire. The loss is the KL divergence of the logits from those of the row left raw.

Tensor shapes: B rows, T tokens, H hidden size, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from splitlearn_comm.codec import CodecPlan, TensorCodec, codec_named, kl_nats, usable_names
from splitlearn_core import (
    CheckpointError,
    SplitModel,
    TrunkInfo,
    TrunkPort,
    TrunkSession,
    UnsupportedOptionError,
    load_tokenizer,
)

NUM_TOKENS = 64
TEXT = (
    "The harbour was quiet when the last boat came in. Nobody spoke of the storm; they counted the nets, and then the "
    "men. def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total / "
    "len(values)\n\nIn 1969 three people flew to the Moon, and 400,000 had worked for 8 years to send them there."
)


def with_losses(options: Mapping[str, Any], losses: dict[str, float]) -> dict[str, Any] | None:
    """Return the options of a connection with `losses`, to be filled, as what each codec loses.

    None where nothing lossy is to be chosen, or where the options say by themselves what each codec loses.
    """
    codec = options.get("codec")
    plan = codec if isinstance(codec, CodecPlan) else CodecPlan(hidden=codec or "raw")
    auto = plan.auto
    if auto is None or auto.kl is not None or (auto.max_kl is None and options.get("max_kl") is None):
        return None
    return {**options, "codec": replace(plan, hidden=replace(auto, kl=losses))}


def sample_text(model_id: str, revision: str | None) -> torch.Tensor:
    """Return the token ids [1, T] of the text that losses are measured on.

    Raises:
        UnsupportedOptionError: the checkpoint has no tokenizer.
    """
    try:
        ids_1T: torch.Tensor = load_tokenizer(model_id, revision)(TEXT, return_tensors="pt").input_ids
    except CheckpointError as error:
        raise UnsupportedOptionError(no_text_message(str(error))) from error
    if not ids_1T.numel():  # transformers makes an empty tokenizer of a checkpoint that has none
        raise UnsupportedOptionError(no_text_message(f"the tokenizer of {model_id} makes no tokens of it"))
    return ids_1T[:, :NUM_TOKENS]


def no_text_message(reason: str) -> str:
    """Say what to give where no loss can be measured."""
    return (
        f"max_kl needs a text to measure losses on, and {reason}; measure them yourself and give "
        "connection={'codec': AutoCodec(max_kl=..., kl={'int8': ...})}"
    )


@torch.no_grad()
def measure_losses(model: SplitModel, ids_1T: torch.Tensor, known: Sequence[str]) -> dict[str, float]:
    """Measure what each lossy codec costs, with one call of the trunk.

    Args:
        model: joined to its trunk; in evaluation mode.
        ids_1T: token ids [1, T] of a text.
        known: names of the codecs that the server has, beside raw.

    Returns:
        KL divergence in nats, mean over the tokens, with hidden states coded in both directions, by name.
    """
    codecs = [
        codec for name in usable_names("hidden") if name in known and not (codec := codec_named(name)).is_lossless
    ]
    trunk, ids_1T = model.trunk, ids_1T[:, : model.max_positions].to(model.device)
    model.trunk = CodedTrunk(trunk, [TensorCodec(), *codecs])
    try:
        logits_BTV = model(input_ids=ids_1T.expand(1 + len(codecs), -1), use_cache=False).logits
    finally:
        model.trunk = trunk
    return {codec.name: kl_nats(row_TV, logits_BTV[0]) for codec, row_TV in zip(codecs, logits_BTV[1:], strict=True)}


class CodedTrunk(TrunkPort):
    """A trunk on the other side of a wire on which each row goes through a codec of its own."""

    def __init__(self, trunk: TrunkPort, codecs: Sequence[TensorCodec]) -> None:
        self._trunk = trunk
        self._codecs = codecs

    @property
    def info(self) -> TrunkInfo:
        """What the trunk is."""
        return self._trunk.info

    def compute(
        self,
        hidden_BTH: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *,
        training: bool = False,
    ) -> torch.Tensor:
        """Run the middle layers on what comes of each row; B codecs."""
        came_BTH = self._through(hidden_BTH)
        return self._through(self._trunk.compute(came_BTH, attention_mask, position_ids, training=training))

    def open_session(self) -> TrunkSession:
        """Open a session that is not coded."""
        return self._trunk.open_session()

    def close(self) -> None:
        """Do nothing: the trunk is another's."""

    def _through(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        sent_BTH = hidden_BTH.to(self._trunk.info.dtype)
        rows = zip(self._codecs, torch.split(sent_BTH, 1), strict=True)
        came_BTH = torch.cat([codec.decode(codec.encode(row_1TH)) for codec, row_1TH in rows])
        return came_BTH.to(device=hidden_BTH.device, dtype=hidden_BTH.dtype)
