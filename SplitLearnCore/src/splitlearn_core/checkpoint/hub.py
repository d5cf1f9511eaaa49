"""What the hub says about the files of a repository, without downloading them."""

import errno
import json
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import OfflineModeIsEnabled

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


@cache
def check_reachable(model_id: str) -> None:
    """Find out by one request whether anybody takes connections where the hub should be.

    `hf_hub_download` tries six times, for 23 seconds, before it gives up, and has no argument for that. A hub that has
    answered once in this process is not asked again (an exception is not cached): its own retries are of use then.

    Raises:
        ConnectionError: nobody does, or the hub's client was told to stay offline.
    """
    try:
        get_hf_file_metadata(hf_hub_url(model_id, "config.json"), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # an answer that is an error is an answer; a timeout may only be a slow network
        if (cause := next(filter(is_nobody_there, chain(error)), None)) is not None:
            raise ConnectionError(f"{HfApi().endpoint}: {cause}") from error


def is_nobody_there(error: BaseException) -> bool:
    """Whether an error says that there is no way to the hub, so that trying again at once is of no use."""
    if isinstance(error, OfflineModeIsEnabled | ConnectionRefusedError | socket.gaierror):
        return True
    return isinstance(error, OSError) and error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from, and so on: the HTTP library's own classes change by version."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _ask(model_id: str, commit: str) -> list[dict[str, object]]:
    try:
        # Without a timeout of its own this call would wait for ever on a network that swallows what is sent.
        info = HfApi().model_info(model_id, revision=commit, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # the hub's client lets errors of its HTTP library through, which changes by version
        raise CheckpointError(f"the hub does not list the files of {model_id}: {error}") from error
    return [
        asdict(FileDigest(name=f.rfilename, size=f.size or 0, sha256=f.lfs.sha256 if f.lfs else ""))
        for f in info.siblings or []
    ]
