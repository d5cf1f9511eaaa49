"""Where a checkpoint is: the built-in model, a local directory, the local hub cache, or the hub, in this order."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)

from splitlearn_core.builtin import BUILTIN_MODEL_ID, builtin_directory
from splitlearn_core.checkpoint.hub import check_reachable
from splitlearn_core.errors import CheckpointError

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A directory that holds a checkpoint, or, for a hub repository, as much of it as was needed so far."""

    model_id: str
    """What the user typed."""
    directory: Path
    """Where its files lie; for a hub repository the snapshot of one commit in the local cache."""
    commit: str | None = None
    """Commit of the hub repository; None for a local directory."""

    def find(self, filename: str) -> Path | None:
        """Return the path of a file, downloading it when it is on the hub alone; None when there is none.

        Raises:
            CheckpointError: the hub did not answer.
        """
        path = self.directory / filename
        if path.is_file() or self.commit is None:
            return path if path.is_file() else None
        if try_to_load_from_cache(self.model_id, filename, revision=self.commit) is _CACHED_NO_EXIST:
            return None  # the hub said so before; a commit does not change
        try:
            return fetch(self.model_id, filename, self.commit)
        except EntryNotFoundError:
            return None

    def find_optional(self, filename: str) -> Path | None:
        """Return the path of a file that many checkpoints lack; a hub that cannot be asked is taken to lack it too."""
        try:
            return self.find(filename)
        except CheckpointError:
            logger.warning("the hub cannot be asked whether %s has a %s: going on without", self.model_id, filename)
            return None

    def files_here(self) -> list[str]:
        """Return the names of the files that lie here already."""
        return sorted(path.name for path in self.directory.iterdir() if path.is_file())


def locate(model_id: str, revision: str | None = None) -> Source:
    """Find a checkpoint by the name that a user typed.

    Args:
        model_id: `"builtin"`, a local directory, or a hub id.
        revision: branch, tag or commit on the hub; None for its default branch.

    Raises:
        CheckpointError: there is no such checkpoint, with where it was looked for.
    """
    is_local = model_id == BUILTIN_MODEL_ID or Path(model_id).expanduser().is_dir()
    if is_local and revision is not None:
        logger.warning("revision %r is ignored: %s is not on the hub but here", revision, model_id)
    source = _local(model_id) if is_local else _on_hub(model_id, revision)
    _check_config(source)
    return source


def _local(model_id: str) -> Source:
    if model_id == BUILTIN_MODEL_ID:
        return Source(model_id=model_id, directory=builtin_directory())
    directory = Path(model_id).expanduser().resolve()
    if not (directory / CONFIG_FILE).is_file():
        names = ", ".join(sorted(path.name for path in directory.iterdir())[:8]) or "nothing"
        raise CheckpointError(f"the directory {model_id} holds no {CONFIG_FILE} but {names}: it is no checkpoint")
    return Source(model_id=model_id, directory=directory)


def _on_hub(model_id: str, revision: str | None) -> Source:
    try:
        config = fetch(model_id, CONFIG_FILE, revision)
    except EntryNotFoundError as error:
        raise CheckpointError(f"the hub's {model_id} holds no {CONFIG_FILE}: it is not a transformers model") from error
    return Source(model_id=model_id, directory=config.parent, commit=config.parent.name)


def _check_config(source: Source) -> None:
    path = source.directory / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}; fetch or copy it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no configuration: expected a JSON object, got {type(content).__name__}")


def fetch(model_id: str, filename: str, revision: str | None) -> Path:
    """Return a file of a hub repository from the local cache, else from the hub.

    Raises:
        CheckpointError: no such repository or revision, no access to it, no answer from the hub, no room for the file.
        EntryNotFoundError: the repository holds no such file.
    """
    try:
        return Path(hf_hub_download(model_id, filename, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return _download(model_id, filename, revision)
    except HFValidationError as error:
        raise CheckpointError(
            f"no model {model_id!r}: it is not a directory here, and not a possible name on the hub; check the path"
        ) from error


def _download(model_id: str, filename: str, revision: str | None) -> Path:
    try:
        check_reachable(model_id)
        return Path(hf_hub_download(model_id, filename, revision=revision))
    except (LocalEntryNotFoundError, ConnectionError) as error:
        at = "" if revision is None else f" at revision {revision!r}"
        raise CheckpointError(
            f"no model {model_id!r}: it is not a directory here, {filename} of it{at} is not in the local hub cache, "
            f"and the hub cannot be reached; check the name and the connection ({_first_line(error)})"
        ) from error
    except EntryNotFoundError:
        raise
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"the hub's {model_id} has no revision {revision!r}: expected one of its branches, tags or commits"
        ) from error
    except HfHubHTTPError as error:
        raise CheckpointError(
            f"no model {model_id!r}: it is not a directory here, not in the local hub cache, and the hub does not give "
            f"it; check the name, and your access to it ({_first_line(error)})"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{filename} of {model_id} cannot be stored in the local hub cache: {error}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
