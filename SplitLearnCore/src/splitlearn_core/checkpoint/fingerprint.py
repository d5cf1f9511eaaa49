"""The fingerprint of a checkpoint, which both ends compute without holding each other's tensors."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from splitlearn_core.checkpoint.hub import FileDigest, hub_files
from splitlearn_core.checkpoint.memory import remembered
from splitlearn_core.checkpoint.source import CONFIG_FILE, Source
from splitlearn_core.checkpoint.weights import WeightIndex, check_complete

SHA256 = re.compile(r"[0-9a-f]{64}")

NOT_THE_MODEL = frozenset(
    {
        "_attn_implementation",
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "dtype",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "task_specific_params",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Configuration keys that do not change what the weights compute; dtype is compared on its own."""


def fingerprint(source: Source, index: WeightIndex) -> str:
    """Return the digest, hexadecimal, of the normalised configuration and the manifest of all weight files.

    Weights that are not here are taken from the hub's metadata; local ones are hashed once in a streaming read.

    Raises:
        CheckpointError: a local file is truncated, or the hub has to be asked and does not answer.
    """
    config = json.loads((source.directory / CONFIG_FILE).read_text(encoding="utf-8"))
    manifest = [(f.name, f.size, f.sha256) for f in sorted(digest_of(source, name) for name in index.files)]
    content = json.dumps([normalised(config), manifest], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def mismatch(source: Source, own: str, theirs: str) -> str:
    """Say that a trunk's fingerprint is not that of `source`, and what to do about it."""
    at, advice = "", ""
    if source.commit is not None:
        at = f" at commit {source.commit}"
        advice = ": give both sides the same revision= (splitlearn serve --revision), one commit by its full name"
    return (
        f"the trunk was loaded from another checkpoint: its fingerprint is {theirs[:12]}…, that of "
        f"{source.model_id}{at} is {own[:12]}…; both sides need the same weights and configuration, to the last "
        f"bit{advice}"
    )


def normalised(config: dict[str, Any]) -> dict[str, Any]:
    """Drop, at every depth, the keys that say nothing about what the model computes."""
    return {
        key: normalised(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in NOT_THE_MODEL
    }


def digest_of(source: Source, filename: str) -> FileDigest:
    """Return name, size and SHA-256 of one weight file, wherever it is."""
    path = source.directory / filename
    if source.commit is not None and not path.is_file():
        listed = hub_files(source.model_id, source.commit)[filename]
        if listed.sha256:
            return listed
        path = source.find(filename) or path
    # Otherwise a truncated file would pass for another checkpoint.
    check_complete(path)
    return FileDigest(name=filename, size=path.stat().st_size, sha256=sha256_of(path.resolve()))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a local file, hexadecimal.

    The hub's cache names large files by it; any other file is read once and remembered by path, size and times.
    """
    if path.parent.name == "blobs" and SHA256.fullmatch(path.name):
        return path.name
    stat = path.stat()
    key = f"file {path} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"

    def read() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return remembered(key, read)
