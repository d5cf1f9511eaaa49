"""Loading the client model: Bottom and Top of a checkpoint, joined to a trunk that proves to belong to it."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from splitlearn_core.builtin import BUILTIN_MODEL_ID, builtin_directory
from splitlearn_core.checkpoint.fingerprint import fingerprint, mismatch
from splitlearn_core.checkpoint.source import Source, locate
from splitlearn_core.checkpoint.weights import read_weight_index
from splitlearn_core.errors import TrunkMismatchError
from splitlearn_core.parts.client import SplitModel
from splitlearn_core.parts.load_piece import SplitConfig, load_piece, read_config
from splitlearn_core.parts.port import LocalTrunk, TrunkInfo, TrunkPort
from splitlearn_core.parts.trunk import Trunk
from splitlearn_core.split.layers import num_decoder_layers

logger = logging.getLogger(__name__)


def load_client_model(
    model_id: str = "builtin",
    trunk: TrunkPort | Trunk | None = None,
    split_points: Sequence[int] | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
) -> SplitModel:
    """Load Bottom and Top as one Hugging Face model whose middle is a trunk.

    Args:
        model_id: `"builtin"`, a local directory in Hugging Face format, or a hub id.
        trunk: the middle; None to load it into this process too.
        split_points: `(a, b)`; None for the trunk's own.
        device: where the weights go; None for the CPU.
        dtype: dtype of the weights; None for float32 on the CPU and the checkpoint's own elsewhere.
        attn_implementation: as in transformers; None for what the model prefers.
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: no such checkpoint, or its weights are missing or truncated.
        SplitPointError: cut points out of order or out of range.
        TrunkMismatchError: the trunk is of another model, another checkpoint, or cut elsewhere.
        UnsupportedModelError: the model cannot be cut exactly.
    """
    source = locate(model_id, revision)
    split = SplitConfig(split_points=split_points, device=device, dtype=dtype, attn_implementation=attn_implementation)
    if trunk is None:
        # As on a server: `model.parameters()` are Bottom and Top, and nobody would clear the trunk's gradients.
        trunk = load_piece(Trunk, source, split).requires_grad_(False)
    port = trunk if isinstance(trunk, TrunkPort) else LocalTrunk(trunk)
    check_trunk(port.info, source, split_points)
    model = load_piece(SplitModel, source, replace(split, split_points=port.info.split_points))
    model.trunk = port
    # It was read from a directory of links that is gone; an adapter's configuration names what it belongs to.
    name = str(builtin_directory()) if model_id == BUILTIN_MODEL_ID else model_id
    model.name_or_path = model.config.name_or_path = name
    if model.dtype != port.info.dtype:
        logger.warning(
            "this side computes in %s, the trunk in %s: hidden states are converted on the way there and back",
            model.dtype,
            port.info.dtype,
        )
    return model


def check_trunk(info: TrunkInfo, source: Source, split_points: Sequence[int] | None) -> None:
    """Check, before any weight is read, that a trunk belongs to a checkpoint and is cut where the user says.

    Raises:
        TrunkMismatchError: with both sides of the first difference found.
    """
    config = read_config(source)
    num_layers = num_decoder_layers(config)
    if (info.model_type, info.num_layers) != (config.model_type, num_layers):
        raise TrunkMismatchError(
            f"the trunk is of a {info.model_type} model of {info.num_layers} layers, but {source.model_id} is a "
            f"{config.model_type} model of {num_layers}: name the model that the server hosts"
        )
    if split_points is not None and tuple(split_points) != tuple(info.split_points):
        raise TrunkMismatchError(
            f"the cut points {tuple(split_points)} are not the trunk's, {tuple(info.split_points)}: "
            "leave them out to use the trunk's"
        )
    own = fingerprint(source, read_weight_index(source))
    if info.fingerprint is None:
        logger.warning("the trunk's weights came from memory: whether they belong to %s is not known", source.model_id)
    elif info.fingerprint != own:
        raise TrunkMismatchError(mismatch(source, own, info.fingerprint))
