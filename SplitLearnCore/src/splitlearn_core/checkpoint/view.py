"""A directory that shows `from_pretrained` only what one part needs of a checkpoint."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitlearn_core.checkpoint.source import CONFIG_FILE, Source
from splitlearn_core.checkpoint.weights import WeightIndex, check_complete
from splitlearn_core.errors import CheckpointError

GENERATION_CONFIG = "generation_config.json"


@contextmanager
def part_view(source: Source, index: WeightIndex, tensors: set[str] | None) -> Iterator[Path]:
    """Bring the files that hold some tensors here and show them alone.

    Args:
        source: the checkpoint.
        index: how it lays out its weights.
        tensors: names of the tensors that are needed; None for all. Ignored for a single file, which is memory-mapped.

    Yields:
        A directory for `from_pretrained`; it may be removed once the weights are loaded.

    Raises:
        CheckpointError: a file is missing, truncated, or cannot be downloaded.
    """
    shown = {name: f for name, f in (index.file_of_tensor or {}).items() if tensors is None or name in tensors}
    files = sorted(set(shown.values())) if index.file_of_tensor is not None else list(index.files)
    paths = {name: _bring(source, name) for name in files}
    optional = {name: path for name in (CONFIG_FILE, GENERATION_CONFIG) if (path := source.find_optional(name))}
    with tempfile.TemporaryDirectory(prefix="splitlearn-") as directory:
        view = Path(directory)
        for name, path in {**paths, **optional}.items():
            _show(path, view / name)
        if index.index_name is not None:
            content = {"metadata": {}, "weight_map": shown}
            (view / index.index_name).write_text(json.dumps(content), encoding="utf-8")
        yield view


def _bring(source: Source, filename: str) -> Path:
    path = source.find(filename)
    if path is None:
        raise CheckpointError(f"{source.model_id} names the weight file {filename}, but it is not there")
    check_complete(path)
    return path


def _show(path: Path, link: Path) -> None:
    try:
        link.symlink_to(path.resolve())
    except OSError:  # a file system without links
        shutil.copy2(path, link)
