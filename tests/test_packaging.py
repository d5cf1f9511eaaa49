"""The three distributions: their metadata against each other and the pins, and their wheels against their sources."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "splitlearn-core": "SplitLearnCore",
    "splitlearn-comm": "SplitLearnComm",
    "splitlearn-manager": "SplitLearnManager",
}
PACKAGES = {
    "splitlearn-core": ["splitlearn", "splitlearn_core"],
    "splitlearn-comm": ["splitlearn_comm"],
    "splitlearn-manager": ["splitlearn_manager"],
}
# What the installation table promises; "dev" comes to each.
BASE = {
    "splitlearn-core": {"torch", "transformers", "safetensors", "typer", "rich"},
    "splitlearn-comm": {"torch", "grpcio", "protobuf", "numpy", "grpcio-health-checking"},
    "splitlearn-manager": {"splitlearn-core", "splitlearn-comm", "prometheus-client", "psutil", "nvidia-ml-py"},
}
EXTRAS = {
    "splitlearn-core": {
        "client": set(),
        "server": {"psutil"},
        "train": {"peft", "accelerate", "matplotlib"},
        "tensorboard": {"tensorboard"},
        "trackio": {"trackio"},
        "ui": {"gradio"},
    },
    "splitlearn-comm": {
        "client": {"zstandard"},
        "server": {"grpcio-reflection"},
        "otel": {"opentelemetry-api", "opentelemetry-sdk"},
    },
    "splitlearn-manager": {"server": {"splitlearn-core", "splitlearn-comm"}},
}
UNTESTED = {"gradio", "trackio"}  # nothing of ours uses them: the first yet, the other Trainer does

distributions = pytest.mark.parametrize("distribution", FOLDERS)


def read_project(distribution: str) -> dict[str, Any]:
    with (ROOT / FOLDERS[distribution] / "pyproject.toml").open("rb") as stream:
        project: dict[str, Any] = tomllib.load(stream)["project"]
    return project


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def read_pins(name: str) -> dict[str, Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]
    return {canonicalize_name(pin.name): pin for pin in pins}


def version_of(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    assert specifier.operator == "==", f"{pin} is not a pin"
    return specifier.version


def foreign_requirements(distribution: str) -> Iterator[Requirement]:
    """What a distribution needs of others' work, in every extra."""
    project = read_project(distribution)
    for text in sum(project["optional-dependencies"].values(), list(project["dependencies"])):
        requirement = Requirement(text)
        if canonicalize_name(requirement.name) not in {*FOLDERS, *UNTESTED}:
            yield requirement


@distributions
def test_requirements_are_as_promised(distribution: str) -> None:
    project = read_project(distribution)
    extras = {name: names(requirements) for name, requirements in project["optional-dependencies"].items()}
    extras.pop("dev")
    assert names(project["dependencies"]) == BASE[distribution]
    assert extras == EXTRAS[distribution]
    assert project["requires-python"] == ">=3.11"


def test_versions_are_in_lock_step() -> None:
    (version,) = {read_project(distribution)["version"] for distribution in FOLDERS}
    manager = read_project("splitlearn-manager")
    siblings = [
        requirement
        for text in [*manager["dependencies"], *manager["optional-dependencies"]["server"]]
        if canonicalize_name((requirement := Requirement(text)).name) in FOLDERS
    ]
    assert len(siblings) == 4
    assert {str(requirement.specifier) for requirement in siblings} == {f"=={version}"}


@distributions
def test_pins_are_in_range(distribution: str) -> None:
    pins = read_pins("requirements-dev.txt")
    for requirement in foreign_requirements(distribution):
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version_of(pin)), f"{pin} is not {requirement}"


@distributions
def test_oldest_pins_are_the_lower_bounds(distribution: str) -> None:
    pins = read_pins("requirements-oldest.txt")
    for requirement in foreign_requirements(distribution):
        if canonicalize_name(requirement.name) in ("pytest", "pytest-timeout"):
            continue  # tools: the tests run with the pinned ones
        pin = version_of(pins[canonicalize_name(requirement.name)])
        (lowest,) = [part.version for part in requirement.specifier if part.operator == ">="]
        assert pin == lowest or pin.startswith(f"{lowest}."), f"{requirement.name} {pin} is not {requirement}"
        assert requirement.specifier.contains(pin)


def test_torch_is_pinned_first() -> None:
    for name in ("requirements-dev.txt", "requirements-oldest.txt"):
        assert next(iter(read_pins(name))) == "torch", name
    assert version_of(read_pins("requirements-dev.txt")["torch"]) == "2.13.0"


@distributions
def test_licence_is_the_projects(distribution: str) -> None:
    assert (ROOT / FOLDERS[distribution] / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert read_project(distribution)["license"] == "MIT"


@pytest.mark.slow
@distributions
def test_wheel_holds_every_source_file(distribution: str, tmp_path: Path) -> None:
    folder = FOLDERS[distribution]
    # A copy: building in place leaves a build folder whose old files would get into the next wheel.
    litter = shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__", ".*")
    shutil.copytree(ROOT / folder, tmp_path / folder, ignore=litter)
    wheel = build_wheel(tmp_path / folder, tmp_path / "wheels")

    source = tmp_path / folder / "src"
    kept = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    kept = {name for name in kept if ".egg-info/" not in name and "__pycache__" not in name}
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        info = next(name.split("/")[0] for name in held if ".dist-info/" in name)
        assert {name for name in held if not name.startswith(info)} == kept
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        check_metadata(distribution, Parser().parsestr(archive.read(f"{info}/METADATA").decode()))
    assert {f"{package}/py.typed" for package in PACKAGES[distribution]} <= held


def build_wheel(folder: Path, target: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(target), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = target.iterdir()
    return wheel


def check_metadata(distribution: str, metadata: Message) -> None:
    assert metadata["Version"] == read_project(distribution)["version"]
    assert metadata["License-Expression"] == "MIT"
    assert set(metadata.get_all("Provides-Extra", [])) == {*EXTRAS[distribution], "dev"}
    assert str(metadata.get_payload()).strip() == (ROOT / FOLDERS[distribution] / "README.md").read_text().strip()
