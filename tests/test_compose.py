"""The Compose file in ops/, held against the schema of the Compose Specification."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "tests" / "support" / "compose_spec" / "compose_spec.json"
Check = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "ops" / "compose.yaml").read_text())
    # The schema is older than this key.
    assert content.pop("name") == "splitlearn"
    return content


@pytest.fixture(scope="module")
def check() -> Check:
    """Raises for what the specification does not know."""
    validation = pytest.importorskip("fastjsonschema")
    schema = json.loads(SCHEMA.read_text())
    # It says 2019-09, and uses nothing that draft 7 has not.
    schema["$schema"] = "http://json-schema.org/draft-07/schema#"
    compiled: Check = validation.compile(schema)
    return compiled


def test_the_file_is_what_the_specification_says(compose: dict[str, Any], check: Check) -> None:
    check(compose)


@pytest.mark.parametrize("service", ["server", "prometheus", "grafana"])
@pytest.mark.parametrize("wrong", [{"port": ["1:1"]}, {"volumes": "./a:/a"}, {"healthcheck": {"every": "10s"}}])
def test_a_mistake_is_found(compose: dict[str, Any], check: Check, service: str, wrong: dict[str, Any]) -> None:
    spoilt = copy.deepcopy(compose)
    spoilt["services"][service] |= wrong
    with pytest.raises(ValueError, match=r"^data\.services"):
        check(spoilt)
