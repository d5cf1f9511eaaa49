"""What the stand-in hub answers to a request, decided without a socket."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.support.hub_repository import HubFile, Repository

FILE_PATH = re.compile(r"(?P<storage>/storage)?/(?P<repo>.+?)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
API_PATH = re.compile(
    r"/api/models/(?P<repo>.+?)(?:/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<folder>.+))?)?"
)
RANGE = re.compile(r"bytes=(?P<first>\d+)-(?P<last>\d*)")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request, taken apart."""

    path: str
    """As it came, with the query."""
    repo_id: str = ""
    revision: str = "main"
    file: str = ""
    """The file that is asked for; empty where it is not a file."""
    what: str = ""
    """`revision`, `tree` or `paths-info`; empty for a file, and for a model's description."""
    folder: str = ""
    is_storage: bool = False
    """Whether a large file is asked of the storage, after the hub's redirect."""
    query: Mapping[str, list[str]] = field(default_factory=dict)
    form: Mapping[str, list[str]] = field(default_factory=dict)
    range: str = ""
    """The Range header; empty without one."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What to send back: `content`, or a slice of `file`."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""
    file: HubFile | None = None
    first_byte: int = 0
    num_bytes: int = 0
    """Length of the body."""


def take_apart(path: str, form: str, range_header: str) -> Asked:
    """Take a request apart; one the hub does not know has no `repo_id`."""
    url = urlsplit(path)
    match = FILE_PATH.fullmatch(url.path) or API_PATH.fullmatch(url.path)
    found = {name: unquote(text) for name, text in match.groupdict().items() if text} if match else {}
    return Asked(
        path=path,
        repo_id=found.get("repo", ""),
        revision=found.get("revision", "main"),
        file=found.get("file", ""),
        what=found.get("what", ""),
        folder=found.get("folder", ""),
        is_storage="storage" in found,
        query=parse_qs(url.query),
        form=parse_qs(form),
        range=range_header,
    )


def answer(asked: Asked, revisions: Mapping[str, Repository], storage_endpoint: str) -> Answer:
    """Decide the answer to a request for a model, whose branches and commits are `revisions`; empty: no such model."""
    if not revisions:  # what the hub says to everyone who is not logged in
        return _error(401, "RepoNotFound", "Repository not found")
    repository = revisions.get(asked.revision)
    if repository is None:
        return _error(404, "RevisionNotFound", f"Invalid rev id: {asked.revision}")
    if asked.file:
        return _answer_file(asked, repository, storage_endpoint)
    if asked.what in ("tree", "paths-info"):
        return _answer_listing(asked, repository)
    return _json(repository.describe(with_blobs="blobs" in asked.query))


def answer_renamed(asked: Asked, new_id: str) -> Answer:
    """Send the client to the same path of another model."""
    location = asked.path.replace(quote(asked.repo_id), quote(new_id), 1)
    return Answer(status=307, headers={"Location": location})


def _answer_file(asked: Asked, repository: Repository, storage_endpoint: str) -> Answer:
    commit = {"X-Repo-Commit": repository.commit}
    file = repository.files.get(asked.file)
    if file is None:
        return _error(404, "EntryNotFound", "Entry not found", commit)
    if asked.is_storage:
        return _slice(file, asked.range, {})
    if file.sha256 is None:
        return _slice(file, asked.range, commit)
    location = f"{storage_endpoint}/{quote(repository.repo_id)}/resolve/{repository.commit}/{quote(file.name)}"
    linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.num_bytes)}
    return Answer(status=302, headers={**commit, **linked, "Location": location})


def _slice(file: HubFile, range_header: str, headers: Mapping[str, str]) -> Answer:
    headers = {**headers, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
    match = RANGE.fullmatch(range_header)
    if match is None:
        return Answer(status=200, headers=headers, file=file, num_bytes=file.num_bytes)
    first = int(match["first"])
    end = min(int(match["last"]) + 1 if match["last"] else file.num_bytes, file.num_bytes)
    if first >= end:
        return Answer(status=416, headers={"Content-Range": f"bytes */{file.num_bytes}"})
    headers["Content-Range"] = f"bytes {first}-{end - 1}/{file.num_bytes}"
    return Answer(status=206, headers=headers, file=file, first_byte=first, num_bytes=end - first)


def _answer_listing(asked: Asked, repository: Repository) -> Answer:
    files = repository.files.values()
    if asked.what == "paths-info":
        return _json([file.describe() for file in files if file.name in asked.form.get("paths", [])])
    prefix = f"{asked.folder}/" if asked.folder else ""
    inside = [file for file in files if file.name.startswith(prefix)]
    if not inside:
        return _error(404, "EntryNotFound", f"{asked.folder} does not exist on {asked.revision}")
    if asked.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
        return _json(_list_one_level(inside, prefix))
    return _json([file.describe() for file in inside])


def _list_one_level(files: list[HubFile], prefix: str) -> list[dict[str, object]]:
    entries: dict[str, dict[str, object]] = {}
    for file in files:
        name, _, rest = file.name.removeprefix(prefix).partition("/")
        folder: dict[str, object] = {"type": "directory", "path": prefix + name, "oid": file.blob_id, "size": 0}
        entries.setdefault(name, folder if rest else file.describe())
    return list(entries.values())


def _json(value: object) -> Answer:
    content = json.dumps(value).encode()
    return Answer(status=200, headers={"Content-Type": "application/json"}, content=content, num_bytes=len(content))


def _error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    content = json.dumps({"error": message}).encode()
    headers = {**(headers or {}), "Content-Type": "application/json", "X-Error-Code": code, "X-Error-Message": message}
    return Answer(status=status, headers=headers, content=content, num_bytes=len(content))
