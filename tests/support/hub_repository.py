"""A directory as the hub shows it: the files of one commit, with the digests that stand in its metadata."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 18
LFS_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".gguf", ".h5", ".msgpack", ".onnx"})
LFS_BYTES = 10 << 20  # the hub takes no larger file into git itself


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file of a repository."""

    name: str
    """Path in the repository, with forward slashes."""
    path: Path
    num_bytes: int
    blob_id: str
    """What git names the content (of the pointer, where the content is in large-file storage)."""
    sha256: str | None
    """Digest of the content, for files in large-file storage; None for the others, as on the hub."""

    @property
    def etag(self) -> str:
        """What a client names the content in its cache."""
        return self.sha256 or self.blob_id

    def describe(self) -> dict[str, Any]:
        """The file in the listing of a tree."""
        entry: dict[str, Any] = {"type": "file", "path": self.name, "oid": self.blob_id, "size": self.num_bytes}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": self.num_bytes, "pointerSize": len(_lfs_pointer(self))}
        return entry

    def describe_sibling(self, *, with_blobs: bool) -> dict[str, Any]:
        """The file in the description of its model; digests only when asked for."""
        entry: dict[str, Any] = {"rfilename": self.name}
        if with_blobs:
            entry |= {"blobId": self.blob_id, "size": self.num_bytes}
        if with_blobs and self.sha256:
            entry["lfs"] = {"sha256": self.sha256, "size": self.num_bytes, "pointerSize": len(_lfs_pointer(self))}
        return entry


@dataclass(frozen=True, kw_only=True)
class Repository:
    """One published model, at one commit."""

    repo_id: str
    files: dict[str, HubFile]
    commit: str
    """Digest of names and contents, so that other contents are another commit."""

    def describe(self, *, with_blobs: bool) -> dict[str, Any]:
        """The model's description."""
        siblings = [file.describe_sibling(with_blobs=with_blobs) for file in self.files.values()]
        return {
            "_id": self.commit[:24],
            "id": self.repo_id,
            "modelId": self.repo_id,
            "sha": self.commit,
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "siblings": siblings,
        }


def read_repository(repo_id: str, directory: Path) -> Repository:
    """Read every file below `directory` once; ValueError where there is none."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    if not paths:
        raise ValueError(f"nothing to publish as {repo_id}: no file in {directory}")
    files = {file.name: file for file in (_read_file(directory, path) for path in paths)}
    tree = "".join(f"{file.etag} {file.name}\n" for file in files.values())
    return Repository(repo_id=repo_id, files=files, commit=hashlib.sha1(tree.encode()).hexdigest())


def _read_file(directory: Path, path: Path) -> HubFile:
    name = path.relative_to(directory).as_posix()
    num_bytes = path.stat().st_size
    if path.suffix in LFS_SUFFIXES or num_bytes > LFS_BYTES:
        file = HubFile(name=name, path=path, num_bytes=num_bytes, blob_id="", sha256=_sha256(path))
        pointer = _lfs_pointer(file)
        return HubFile(name=name, path=path, num_bytes=num_bytes, blob_id=_git_blob_id(pointer), sha256=file.sha256)
    return HubFile(name=name, path=path, num_bytes=num_bytes, blob_id=_git_blob_id(path.read_bytes()), sha256=None)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _lfs_pointer(file: HubFile) -> bytes:
    lines = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.num_bytes}\n"
    return lines.encode()
