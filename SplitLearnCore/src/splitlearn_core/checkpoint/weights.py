"""The weight files of a checkpoint, and which of them hold a part's tensors."""

import json
import logging
import re
import struct
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from transformers import PreTrainedModel

from splitlearn_core.checkpoint.hub import hub_files
from splitlearn_core.checkpoint.source import Source
from splitlearn_core.errors import CheckpointError
from splitlearn_core.split.cut import Cut
from splitlearn_core.split.layers import find_layers, parameter_name

logger = logging.getLogger(__name__)

ZIP_START = b"PK\x03\x04"
INDEX_SUFFIX = ".index.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Single-file names in the order in which transformers looks for them; each may be sharded with an index."""
LAYOUTS = tuple(name + suffix for name in WEIGHT_FILES for suffix in ("", INDEX_SUFFIX))


@dataclass(frozen=True, kw_only=True)
class WeightIndex:
    """How a checkpoint lays out its weights."""

    files: tuple[str, ...]
    """Names of all weight files."""
    index_name: str | None = None
    """Name of the index of a sharded checkpoint; None for a single file."""
    file_of_tensor: Mapping[str, str] | None = None
    """For a sharded checkpoint the file of each tensor."""


def read_weight_index(source: Source) -> WeightIndex:
    """Find out which weight files a checkpoint has; downloads at most an index.

    Raises:
        CheckpointError: there are no weights, or the index cannot be read.
    """
    found = _find_layout(source)
    if not found.endswith(INDEX_SUFFIX):
        return WeightIndex(files=(found,))
    path = source.find(found)
    assert path is not None
    return _parse_index(path)


def _find_layout(source: Source) -> str:
    """Return the weight file, or the index, that transformers would take."""
    here = source.files_here()
    found = _first_of(here)
    if source.commit is None or found == LAYOUTS[0]:
        return found or _no_weights(source, here)
    # The cache may hold what an older or other program downloaded; all sides have to choose the same file.
    try:
        listed = list(hub_files(source.model_id, source.commit))
    except CheckpointError:
        if found is None:
            raise
        logger.info("the hub cannot be asked for other weights of %s than %s, which is here", source.model_id, found)
        return found
    return _first_of(listed) or _no_weights(source, listed)


def _no_weights(source: Source, names: Iterable[str]) -> NoReturn:
    raise CheckpointError(
        f"{source.model_id} holds no weights: expected {' or '.join(WEIGHT_FILES)}, whole or with an index; "
        f"found {', '.join(sorted(names)) or 'nothing'}"
    )


def _first_of(names: Collection[str]) -> str | None:
    return next((name for name in LAYOUTS if name in names), None)


def _parse_index(path: Path) -> WeightIndex:
    try:
        file_of_tensor = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = tuple(sorted(set(file_of_tensor.values())))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.name} is no index of weights: {error}") from error
    return WeightIndex(files=files, index_name=path.name, file_of_tensor=file_of_tensor)


def needed_tensors(names: Iterable[str], model: PreTrainedModel, cut: Cut) -> set[str]:
    """Return the names of the tensors in a checkpoint that a piece of a model needs.

    Only what certainly belongs to another part is left out: a layer with a foreign index, an embedding that is
    not here. A name that transformers renames while loading therefore stays.

    Args:
        names: names of tensors in the checkpoint.
        model: the whole model, on the meta device.
        cut: what the piece holds.
    """
    leaf = find_layers(model).name.rpartition(".")[2]
    layer_name = re.compile(rf"(?:^|\.){re.escape(leaf)}\.(\d+)\.")
    absent = {without_prefix(name, model) for name in absent_embeddings(model, cut)}

    def is_needed(name: str) -> bool:
        layer = layer_name.search(name)
        foreign = layer is not None and int(layer[1]) < cut.num_layers and not cut.keeps(int(layer[1]))
        return not foreign and without_prefix(name, model) not in absent

    return {name for name in names if is_needed(name)}


def absent_embeddings(model: PreTrainedModel, cut: Cut) -> set[str]:
    """Return the parameter names of those embeddings that a piece does not hold; tied ones count as one."""
    inputs = parameter_name(model, model.get_input_embeddings())
    outputs = parameter_name(model, model.get_output_embeddings())
    tied = any({t, s} == {inputs, outputs} for t, s in model.all_tied_weights_keys.items())
    if tied and (cut.has_input_embeddings or cut.has_output_embeddings):
        return set()
    absent = {inputs: not cut.has_input_embeddings, outputs: not cut.has_output_embeddings}
    return {name for name, is_absent in absent.items() if is_absent and name is not None}


def without_prefix(name: str, model: PreTrainedModel) -> str:
    """Drop the base model's prefix, which checkpoints of a bare base model do not have (GPT-2's on the hub)."""
    return name.removeprefix(f"{model.base_model_prefix}.")


def check_complete(path: Path) -> None:
    """Check that a weight file was not cut off; reads no tensor.

    Raises:
        CheckpointError: the file is truncated or is not of the kind that its name says.
    """
    if path.suffix == ".safetensors":
        check_complete_safetensors(path)
        return
    with path.open("rb") as file:
        is_archive = file.read(len(ZIP_START)) == ZIP_START
    # What torch.save writes is an archive whose table of contents comes last; very old files are none.
    if path.stat().st_size == 0 or (is_archive and not zipfile.is_zipfile(path)):
        raise CheckpointError(
            f"{path} is truncated: its {path.stat().st_size} bytes do not end where a file of torch "
            "ends; fetch or copy it again"
        )


def check_complete_safetensors(path: Path) -> None:
    """Check that a safetensors file is as long as its header says; reads the header alone.

    The format: 8 bytes of header length (little-endian), a JSON header with byte offsets, the tensors
    (https://github.com/huggingface/safetensors#format).

    Raises:
        CheckpointError: the file is truncated or is no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + header_bytes > size:
            raise CheckpointError(
                f"{path} is truncated or no safetensors file: its {size} bytes do not hold its header; "
                "fetch or copy it again"
            )
        try:
            header = json.loads(file.read(header_bytes))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"{path} is no safetensors file: its header cannot be read; fetch or copy it again"
            ) from error
    expected = 8 + header_bytes + max(ends, default=0)
    if size < expected:
        raise CheckpointError(f"{path} is truncated: {size} of {expected} bytes; fetch or copy it again")
