"""What the hub says about the files of a repository, without downloading them."""

import json
from dataclasses import asdict, dataclass

from huggingface_hub import HfApi

from splitlearn_core.checkpoint.memory import remembered
from splitlearn_core.errors import CheckpointError


@dataclass(frozen=True, kw_only=True, order=True)
class FileDigest:
    """One weight file."""

    name: str
    """Name inside the checkpoint."""
    size: int
    """Length in bytes."""
    sha256: str
    """SHA-256 of the content, hexadecimal; empty where the hub keeps none (files outside its large-file storage)."""


def hub_files(model_id: str, commit: str) -> dict[str, FileDigest]:
    """Return the files of a commit by name; asked once, then remembered, because a commit never changes.

    Raises:
        CheckpointError: the hub did not answer.
    """
    listing = remembered(f"hub {model_id} {commit}", lambda: json.dumps(_ask(model_id, commit)))
    return {entry["name"]: FileDigest(**entry) for entry in json.loads(listing)}


def _ask(model_id: str, commit: str) -> list[dict[str, object]]:
    try:
        info = HfApi().model_info(model_id, revision=commit, files_metadata=True)
    except Exception as error:  # the hub's client lets errors of its HTTP library through, which changes by version
        raise CheckpointError(f"the hub does not list the files of {model_id}: {error}") from error
    return [
        asdict(FileDigest(name=f.rfilename, size=f.size or 0, sha256=f.lfs.sha256 if f.lfs else ""))
        for f in info.siblings or []
    ]
