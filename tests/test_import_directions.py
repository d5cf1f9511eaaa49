"""The check of import directions, on small planted trees and on the packages themselves."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_check(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "check_imports.py"), str(root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def plant(root: Path, files: dict[str, str]) -> Path:
    """Write a tree of packages: file names are relative to the packages' common parent."""
    for name, source in files.items():
        package = name.split("/")[0]
        path = root / f"Distribution_{package}" / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for directory in path.relative_to(root).parents:
            if directory.parts[:1] and "src" in directory.parts[:-1]:
                (root / directory / "__init__.py").touch()
        path.write_text(source)
    return root


def test_packages_keep_the_directions() -> None:
    result = run_check(ROOT)
    assert result.returncode == 0, result.stdout
    assert "4 packages" in result.stderr


ALLOWED = {
    "manager imports core and comm": {
        "splitlearn_manager/a.py": "import splitlearn_comm.server\nfrom splitlearn_core import Trunk"
    },
    "front door imports core": {"splitlearn/a.py": "from splitlearn_core.parts import Bottom"},
    "front door reaches comm inside a function": {
        "splitlearn/a.py": "def serve():\n    from splitlearn_comm import Client\n    return Client"
    },
    "front door reaches an adapter of comm inside a function": {
        "splitlearn/cli/app.py": "def serve():\n    from splitlearn.remote import Remote\n    return Remote",
        "splitlearn/remote.py": "from splitlearn_comm import Client",
    },
    "extra that is looked for": {
        "splitlearn_comm/a.py": (
            "def f():\n    if importlib.util.find_spec('grpc_reflection'):\n        import grpc_reflection"
        )
    },
    "optional extra": {
        "splitlearn_core/a.py": (
            "def train():\n    try:\n        import peft\n    except ImportError as error:\n"
            "        raise ImportError('pip install splitlearn-core[train]') from error\n    return peft"
        )
    },
    "types only": {
        "splitlearn_core/a.py": "import typing\nif typing.TYPE_CHECKING:\n    from splitlearn_core import b",
        "splitlearn_core/b.py": "from splitlearn_core import a",
    },
    "package exports its parts": {
        "splitlearn_core/__init__.py": "from splitlearn_core.parts import Bottom",
        "splitlearn_core/parts/__init__.py": "from splitlearn_core.parts.bottom import Bottom",
        "splitlearn_core/parts/bottom.py": "from splitlearn_core.errors import SplitError",
        "splitlearn_core/errors.py": "class SplitError(Exception): ...",
    },
}


@pytest.mark.parametrize("files", ALLOWED.values(), ids=ALLOWED.keys())
def test_allowed(tmp_path: Path, files: dict[str, str]) -> None:
    result = run_check(plant(tmp_path, files))
    assert (result.returncode, result.stdout) == (0, "")


REFUSED = {
    "core imports comm": ({"splitlearn_core/a.py": "import splitlearn_comm"}, "core may not import splitlearn_comm"),
    "core imports comm in a function": (
        {"splitlearn_core/a.py": "def f():\n    import splitlearn_comm.client"},
        "a.py:2: splitlearn_core may not import splitlearn_comm",
    ),
    "core imports the front door": ({"splitlearn_core/a.py": "import splitlearn.cli"}, "may not import splitlearn\n"),
    "core imports grpc": ({"splitlearn_core/a.py": "import grpc.aio"}, "splitlearn_core may not import grpc"),
    "comm imports core": (
        {"splitlearn_comm/a/b.py": "from splitlearn_core import x"},
        "may not import splitlearn_core",
    ),
    "comm imports core by name": (
        {"splitlearn_comm/a.py": "import importlib\ncore = importlib.import_module('splitlearn_core.parts')"},
        "a.py:2: splitlearn_comm may not import splitlearn_core",
    ),
    "comm imports transformers": ({"splitlearn_comm/a.py": "import transformers"}, "may not import transformers"),
    "manager imports the front door": ({"splitlearn_manager/a.py": "import splitlearn"}, "may not import splitlearn\n"),
    "front door imports comm at the top": (
        {"splitlearn/quickstart.py": "try:\n    import splitlearn_comm\nexcept ImportError:\n    pass"},
        "quickstart.py:2: splitlearn may import splitlearn_comm only inside the function that needs it",
    ),
    "front door imports an adapter of comm at the top": (
        {
            "splitlearn/cli/__init__.py": "from .app import main",
            "splitlearn/cli/app.py": "from splitlearn.remote import Remote",
            "splitlearn/remote.py": "from splitlearn_comm import Client",
        },
        "remote.py:1: splitlearn may import splitlearn_comm only inside the function that needs it",
    ),
    "import in a function": (
        {"splitlearn_manager/a.py": "class A:\n    async def f(self):\n        import json"},
        "a.py:3: import of json inside a function",
    ),
    "guard of another error": (
        {"splitlearn_core/a.py": "def f():\n    try:\n        import peft\n    except ValueError:\n        pass"},
        "import of peft inside a function",
    ),
    "cycle of two": (
        {"splitlearn_core/a.py": "from splitlearn_core.b import x", "splitlearn_core/b.py": "import splitlearn_core.a"},
        "import cycle: splitlearn_core.a -> splitlearn_core.b -> splitlearn_core.a",
    ),
    "cycle through relative imports": (
        {
            "splitlearn_core/parts/__init__.py": "from .bottom import Bottom",
            "splitlearn_core/parts/bottom.py": "from . import trunk",
            "splitlearn_core/parts/trunk.py": "from ..parts import Bottom",
        },
        "import cycle: splitlearn_core.parts",
    ),
}


@pytest.mark.parametrize(("files", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    result = run_check(plant(tmp_path, files))
    assert result.returncode == 1
    assert message in result.stdout
    assert len(result.stdout.splitlines()) == 1


def test_new_package_needs_a_rule(tmp_path: Path) -> None:
    result = run_check(plant(tmp_path, {"splitlearn_web/a.py": ""}))
    assert result.returncode == 1
    assert "no rule for the package splitlearn_web" in result.stderr


def test_nothing_to_check_is_a_failure(tmp_path: Path) -> None:
    assert run_check(tmp_path).returncode == 1
