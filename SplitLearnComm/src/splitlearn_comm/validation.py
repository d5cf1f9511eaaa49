"""All checks of the tensors that arrive at a server, in one place.

(That a message's bytes, shape and dtype agree is checked by the codec, before memory is allocated.)

B batch, T tokens of this message, P tokens already in the cache, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch

from splitlearn_comm.errors import FingerprintMismatchError, InvalidRequestError, SequenceTooLongError
from splitlearn_comm.messages import ComputeCall, Forward, KVEntries, ServiceInfo, SessionState
from splitlearn_comm.training import (
    BackwardPass,
    ForwardPass,
    FreeAdapter,
    PublishAdapter,
    StartTraining,
    TrainingAction,
    Update,
)

MAX_NAME_CHARACTERS = 128
"""Of an adapter's name."""

AUTOCAST = (torch.float16, torch.bfloat16)
"""Dtypes of mixed precision."""
MIXED = (torch.float32, *AUTOCAST)
"""What hidden states and gradients may have in it, whatever the weights have."""


class Validator:
    """Holds what arrives against what the service says about itself.

    Args:
        info: What is served. With a `hidden_size`, inputs are hidden states [B, T, H]; without, any tensor will do.
        refuse_nonfinite: Whether NaN and infinity are refused in floating inputs.
        accepted: Names of the arguments besides the tensor that it takes; None for all. Of others it is not looked at
            what they are like: whoever serves refuses them.
    """

    def __init__(
        self, info: ServiceInfo, *, refuse_nonfinite: bool = True, accepted: Collection[str] | None = None
    ) -> None:
        self._info = info
        self._accepted = accepted
        self._refuse_nonfinite = refuse_nonfinite

    def check_call(self, call: ComputeCall) -> None:
        """Raise `InvalidRequestError` or `SequenceTooLongError` for a stateless call that cannot be done."""
        self.check_adapter(call.adapter)
        past = call.past_key_values.position if call.past_key_values else 0
        self._check(call.tensor, past, call.attention_mask, call.position_ids)
        if call.past_key_values and self._info.hidden_size is not None:
            _check_rows(call.past_key_values, call.tensor.shape[0])

    def check_forward(self, action: Forward, position: int) -> None:
        """Raise `InvalidRequestError` or `SequenceTooLongError` for a forward that cannot be done at `position`."""
        if action.hidden.dim() < 2:
            raise InvalidRequestError(
                f"a session counts positions along dimension 1: expected rank 2 or more, a tensor [B, T, ...], "
                f"came rank {action.hidden.dim()}, {_described(action.hidden)}; "
                f"use compute() for tensors without a sequence"
            )
        self._check(action.hidden, position, action.attention_mask, action.position_ids)

    def check_adapter(self, name: str) -> None:
        """Raise `InvalidRequestError` for what cannot be the name of an adapter; empty stands for none."""
        if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
            raise InvalidRequestError(
                f"an adapter's name has at most {MAX_NAME_CHARACTERS} characters, all of them printable; "
                f"came one of {len(name)}"
            )

    def check_training(self, action: TrainingAction) -> None:
        """Raise `InvalidRequestError` or `SequenceTooLongError` for a step of training that cannot be done."""
        match action:
            case StartTraining():
                self.check_adapter(action.name)
            case PublishAdapter() | FreeAdapter():
                self.check_adapter(action.name)
                if not action.name:
                    raise InvalidRequestError("an adapter that is published, or freed, has a name; came none")
            case ForwardPass():
                _check_autocast(action.autocast)
                is_mixed = action.autocast is not None
                self._check(action.hidden, 0, action.attention_mask, action.position_ids, is_mixed=is_mixed)
            case BackwardPass():
                # Not whether it is finite: what is to be done about an overflow is for the client to decide. Nor which
                # of the dtypes it has: that of what its forward returned, which the host knows.
                if self._info.hidden_size is not None:
                    self._check_hidden(action.gradient, self._info.hidden_size, is_mixed=True)
                _check_scale(action.scale)
            case Update():
                _check_scale(action.scale)

    def check_state(self, state: SessionState, position: int) -> None:
        """Raise `InvalidRequestError` or `SequenceTooLongError` for a state no session here could have."""
        lacks_rows = self._info.stateful and position > 0 and state.batch is None
        if state.cache.position != position or lacks_rows:
            raise InvalidRequestError(
                f"a state that contradicts itself: position {state.cache.position} with {state.batch} rows, "
                f"said to be at {position}; import what was exported, unchanged"
            )
        if self._info.hidden_size is not None:
            _check_rows(state.cache, state.batch)
        limit = self._info.max_positions
        if limit is not None and position > limit:
            raise SequenceTooLongError(f"the state has {position} tokens, {self._info.name!r} has {limit} positions")

    def check_fingerprint(self, expected: str) -> None:
        """Raise `FingerprintMismatchError` if a client states a fingerprint (not empty) that is not the service's."""
        if expected and expected != self._info.fingerprint:
            raise FingerprintMismatchError(
                f"the two ends hold different models: the client's parts have fingerprint {expected}, "
                f"{self._info.name!r} here has {self._info.fingerprint}; load both from the same checkpoint"
            )

    def _check(
        self,
        tensor: torch.Tensor,
        past: int,
        mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        *,
        is_mixed: bool = False,
    ) -> None:
        if self._info.hidden_size is not None:
            self._check_hidden(tensor, self._info.hidden_size, is_mixed=is_mixed)
        self._check_length(tensor, past)
        if mask is not None and self._takes("attention_mask"):
            _check_beside("attention_mask", mask, tensor, past + _num_tokens(tensor), "[B, past + T]")
        if position_ids is not None and self._takes("position_ids"):
            _check_beside("position_ids", position_ids, tensor, _num_tokens(tensor), "[B, T]")
        # In mixed precision an overflow is for the client's scaler, which skips the step.
        if self._refuse_nonfinite and not is_mixed:
            _check_finite(tensor)

    def _takes(self, name: str) -> bool:
        return self._accepted is None or name in self._accepted

    def _check_hidden(self, hidden_BTH: torch.Tensor, hidden_size: int, *, is_mixed: bool = False) -> None:
        wanted = self._info.dtype or "floating point"
        is_part = self._info.split_points is not None
        taken = {self._info.dtype, *(MIXED if is_mixed else ())}
        if not hidden_BTH.is_floating_point():
            raise InvalidRequestError(
                f"integers where hidden states belong: expected {wanted} [B, T, {hidden_size}], "
                f"came {_described(hidden_BTH)}; "
                + ("send the hidden states the Bottom makes, not token ids" if is_part else "send floating numbers")
            )
        if hidden_BTH.dim() != 3:
            raise InvalidRequestError(
                f"hidden states of the wrong rank: expected [B, T, {hidden_size}] with 3 dimensions, "
                f"came {_described(hidden_BTH)} with {hidden_BTH.dim()}; a single one has B and T of 1"
            )
        if hidden_BTH.shape[2] != hidden_size or 0 in hidden_BTH.shape:
            raise InvalidRequestError(
                f"hidden states of the wrong shape: expected [B, T, {hidden_size}] with B and T at least 1, "
                f"came {_described(hidden_BTH)}; "
                + ("check that both ends are parts of the same model" if is_part else "get_info() says what is taken")
            )
        if self._info.dtype is not None and hidden_BTH.dtype not in taken:
            raise InvalidRequestError(
                f"hidden states of the wrong dtype: expected {self._info.dtype}, came {hidden_BTH.dtype}; "
                f"convert them with .to({self._info.dtype})"
            )

    def _check_length(self, tensor: torch.Tensor, past: int) -> None:
        limit = self._info.max_positions
        if limit is not None and past + _num_tokens(tensor) > limit:
            raise SequenceTooLongError(
                f"the sequence is too long: {past} tokens in the cache and {_num_tokens(tensor)} new ones make "
                f"{past + _num_tokens(tensor)}, and {self._info.name!r} has {limit} positions; send a shorter one"
            )


def _check_beside(name: str, beside: torch.Tensor, tensor: torch.Tensor, width: int, meaning: str) -> None:
    batch = tensor.shape[0] if tensor.dim() else 0
    if beside.is_floating_point() or tuple(beside.shape) != (batch, width):
        raise InvalidRequestError(
            f"wrong {name}: expected integers or bools {meaning} = [{batch}, {width}], came {_described(beside)}"
        )


def _check_autocast(autocast: torch.dtype | None) -> None:
    if autocast not in (None, *AUTOCAST):
        names = " or ".join(map(str, AUTOCAST))
        raise InvalidRequestError(f"layers run under an autocast of {names}, or under none: came {autocast}")


def _check_scale(scale: float | None) -> None:
    if scale is not None and not math.isfinite(scale):
        raise InvalidRequestError(f"gradients are multiplied by a finite number: came {scale}")


def _check_rows(cache: KVEntries, batch: int | None) -> None:
    for entry in cache.entries:
        for name, tensor in entry.tensors.items():
            if tensor.dim() == 0 or tensor.shape[0] != batch:
                raise InvalidRequestError(
                    f"a cache of other rows: expected {batch}, came {name} {_described(tensor)} of layer {entry.layer}"
                )


def _check_finite(tensor: torch.Tensor) -> None:
    if not tensor.is_floating_point():
        return
    wide = tensor if tensor.itemsize > 1 else tensor.float()
    # A sum is finite only if every element is: one cheap pass. It may overflow by itself, so look again if not.
    if not math.isfinite(wide.sum().item()) and not wide.isfinite().all():
        num_bad = int(wide.isfinite().logical_not().sum())
        raise InvalidRequestError(
            f"NaN or infinity among the inputs: expected finite numbers, came {num_bad} others of {tensor.numel()} "
            f"in {_described(tensor)}; look for an overflow before this call (float16 ends at 65504), "
            f"or serve with refuse_nonfinite=False"
        )


def _num_tokens(tensor: torch.Tensor) -> int:
    return tensor.shape[1] if tensor.dim() > 1 else 0


def _described(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
