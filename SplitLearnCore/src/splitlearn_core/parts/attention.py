"""Which attention a model runs with: the first of FlashAttention-2, SDPA and eager that can be had."""

import logging
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available

from splitlearn_core.split.layers import decoder_config

logger = logging.getLogger(__name__)

AttentionName = Literal["flash_attention_2", "sdpa", "eager"]
"""As transformers calls them; eager is what every model has."""
FLASH: AttentionName = "flash_attention_2"
FLASH_DTYPES = (torch.float16, torch.bfloat16)
"""What the kernels of FlashAttention-2 compute in."""


@dataclass(frozen=True, kw_only=True)
class AttentionSupport:
    """What is there to choose from."""

    architecture: str
    """Name of the model's class."""
    model_has_flash: bool
    """Whether transformers runs this class with FlashAttention-2."""
    model_has_sdpa: bool
    """Whether transformers runs this class with `scaled_dot_product_attention`."""
    is_flash_installed: bool
    """Whether the package flash-attn is there and can be used."""
    device_type: str
    """Where the weights go: `cpu`, `cuda`, …"""
    dtype: torch.dtype | None
    """Dtype of the weights; None where it is not known before they are read."""


@dataclass(frozen=True, kw_only=True)
class AttentionChoice:
    """What was chosen, and why nothing before it."""

    name: AttentionName
    """To be handed to transformers as `attn_implementation`."""
    skipped: dict[AttentionName, str]
    """What would have come before, each with all that is in its way."""

    def __str__(self) -> str:
        reasons = "; ".join(f"not {name}: {reason}" for name, reason in self.skipped.items())
        return f"attention {self.name}" + (f" ({reasons})" if reasons else "")


def choose_attention(support: AttentionSupport) -> AttentionChoice:
    """Return the first of FlashAttention-2, SDPA and eager that nothing stands in the way of. Pure; never raises."""
    skipped: dict[AttentionName, str] = {}
    in_the_way = ", ".join(against_flash(support))
    if not in_the_way:
        return AttentionChoice(name=FLASH, skipped=skipped)
    skipped[FLASH] = in_the_way
    if support.model_has_sdpa:
        return AttentionChoice(name="sdpa", skipped=skipped)
    skipped["sdpa"] = f"{support.architecture} does not support it"
    return AttentionChoice(name="eager", skipped=skipped)


def against_flash(support: AttentionSupport) -> list[str]:
    """Return all that stands in the way of FlashAttention-2, each as a clause."""
    dtype = "not known" if support.dtype is None else str(support.dtype).removeprefix("torch.")
    clauses = {
        f"{support.architecture} does not support it": not support.model_has_flash,
        "flash-attn (2.3.3 or newer) is not installed or finds no GPU": not support.is_flash_installed,
        f"the device is {support.device_type} instead of cuda": support.device_type != "cuda",
        f"the dtype is {dtype} instead of float16 or bfloat16": support.dtype not in FLASH_DTYPES,
    }
    return [clause for clause, is_in_the_way in clauses.items() if is_in_the_way]


def look_around(
    architecture: type[PreTrainedModel], device: torch.device, dtype: torch.dtype | None
) -> AttentionSupport:
    """Return what there is for a model of a class on a device; `dtype` is that of the weights, None if not known."""
    # Where a class names the kernels it goes with, transformers takes the first of them instead of another one, from
    # the hub if need be: that is nothing to be chosen for somebody.
    goes_with: list[str] | None = getattr(architecture, "_compatible_flash_implementations", None)
    return AttentionSupport(
        architecture=architecture.__name__,
        model_has_flash=bool(architecture._supports_flash_attn) and (goes_with is None or FLASH in goes_with),
        model_has_sdpa=bool(architecture._supports_sdpa),
        is_flash_installed=bool(is_flash_attn_2_available()),
        device_type=device.type,
        dtype=dtype,
    )


def best_attention(
    architecture: type[PreTrainedModel],
    config: PreTrainedConfig,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> str | dict[str, str]:
    """Choose the attention of a model that is about to be loaded, and say in the log what was chosen and why.

    Args:
        architecture: class of the whole model.
        config: its configuration, which says the dtype of the checkpoint.
        device: where the weights go; None for the CPU.
        dtype: dtype of the weights; None for float32 on the CPU and the checkpoint's own elsewhere.

    Returns:
        What `from_pretrained` takes as `attn_implementation`.
    """
    place = torch.device(device or "cpu")
    choice = choose_attention(look_around(architecture, place, dtype or dtype_when_loaded(config, place)))
    logger.info("%s of %s", choice, architecture.__name__)
    return of_decoder(choice.name, config)


def of_decoder(name: AttentionName, config: PreTrainedConfig) -> str | dict[str, str]:
    """Return an attention as `from_pretrained` takes it, for the decoder alone where a model has encoders beside it.

    An encoder that does not support what is chosen would refuse it, though no part will hold that encoder.
    """
    decoder = decoder_config(config)
    key = next((key for key in config.sub_configs if getattr(config, key, None) is decoder), None)
    return name if key is None else {"": name, key: name}


def dtype_when_loaded(config: PreTrainedConfig, device: torch.device) -> torch.dtype | None:
    """Return the dtype that weights get where nobody names one; None where the configuration does not say."""
    if device.type == "cpu":
        return torch.float32
    return config.dtype if isinstance(config.dtype, torch.dtype) else None
