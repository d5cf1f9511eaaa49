"""docs/protocol.md against the contract and the code, and its client as it is written."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

from splitlearn_comm import GRPCServerConfig, protocol
from splitlearn_comm._proto.splitlearn.v1 import compute_pb2 as pb
from splitlearn_comm.client import ClientSettings, ExponentialBackoff
from splitlearn_comm.client.failures import RETRY_RULES, RetryRule
from splitlearn_comm.codec import MAX_DIMS, codec_names
from splitlearn_comm.errors import CODES
from splitlearn_comm.framing.bounds import MAX_ITEMS
from splitlearn_comm.framing.chunks import CHUNK_BYTES
from splitlearn_manager._proto.inference import grpc_service_pb2
from splitlearn_manager._proto.splitlearn.v1 import control_pb2
from splitlearn_manager.control.orders import LOAD_KEYS, UNLOAD_DEPENDENTS, UNLOAD_KEYS
from tests.support.page_runs import run_page

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "protocol.md"
REFERENCE = ROOT / "docs" / "api.md"
MESSAGES = {**pb.DESCRIPTOR.message_types_by_name, **control_pb2.DESCRIPTOR.message_types_by_name}
CONTROL = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()}


def rows_of(text: str) -> list[list[str]]:
    """The rows of the tables in a text, as cells."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def section(title: str) -> str:
    """What stands under a heading that ends with the title."""
    found = re.search(rf"^##+ (?:[\w ]+: )?{re.escape(title)}\n(.*?)(?=^##|\Z)", PAGE.read_text(), re.M | re.S)
    assert found, f"no section {title}"
    return found[1]


def type_of(field: FieldDescriptorProto) -> str:
    name = field.type_name.rpartition(".")[2] or SCALARS[field.type]
    if name in ("ExtraEntry", "LabelsEntry"):
        return "map<string, string>"
    return f"repeated {name}" if field.label == FieldDescriptorProto.LABEL_REPEATED else name


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_every_field_of_a_message_is_there(name: str) -> None:
    described = [(row[0], row[1], row[2]) for row in rows_of(section(name)) if row[0].isdigit()]
    message = DescriptorProto()
    MESSAGES[name].CopyToProto(message)
    wanted = [(str(field.number), f"`{field.name}`", type_of(field)) for field in message.field]
    assert described == sorted(wanted, key=lambda row: int(row[0]))


def test_every_control_call_and_parameter_is_there() -> None:
    described = {name: row[1] for row in rows_of(section("Control")) for name in re.findall(r"`(\w+)`", row[0])}
    assert described.keys() == {method.name for method in CONTROL.methods}
    for call, keys in (("RepositoryModelLoad", LOAD_KEYS), ("RepositoryModelUnload", UNLOAD_KEYS)):
        wanted = set(keys) - {UNLOAD_DEPENDENTS}
        assert {key for key in wanted if f"`{key}`" not in described[call]} == set()


def test_every_dtype_is_there() -> None:
    assert [name for name in pb.DType.DESCRIPTOR.values_by_name if f"`{name}`" not in section("TensorData")] == []


def test_every_error_is_there_with_its_code() -> None:
    described = {row[0].strip("`"): row[1] for row in rows_of(section("Error")) if row[0].endswith("Error`")}
    assert described == {cls.__name__: code.name for cls, code in CODES.items()}


def test_the_table_of_retries_is_the_one_in_the_code() -> None:
    described = {row[0]: (row[1], row[2]) for row in rows_of(section("Retries"))[1:]}
    assert described == {code.name: (retried(rule), rule.reason) for code, rule in RETRY_RULES.items()}


def retried(rule: RetryRule) -> str:
    return "yes" if rule.is_retried else "if told when" if rule.is_retried_if_told_when else "no"


def test_the_default_delays_are_those_that_it_says() -> None:
    delays = [ExponentialBackoff().next_delay_s(attempt) for attempt in (1, 2, 3, 4)]
    assert delays == [0.1, 0.2, 0.4, None]
    assert "(by default 0.1, 0.2, 0.4 s, each give or take a fifth, four attempts in" in section("Retries")


def test_every_codec_has_its_layout() -> None:
    described = {name for row in rows_of(section("Codecs on the wire"))[1:] for name in re.findall(r"`(\w+)`", row[0])}
    assert described == set(codec_names()) - {"raw"}


def test_the_limits_are_those_of_the_code() -> None:
    limits = [row[1] for row in rows_of(section("Limits"))[1:]]
    config = GRPCServerConfig()
    wanted = [
        f"{protocol.MAX_MESSAGE_BYTES} bytes",
        f"{CHUNK_BYTES} bytes",
        f"{MAX_DIMS}",
        f"{MAX_ITEMS}",
        f"{config.max_sessions} ",
        "128; 32",
        f"{config.idle_session_timeout_s:g} s; {config.detached_session_timeout_s:g} s; {config.drain_timeout_s:g} s",
    ]
    assert [limit.startswith(start) for limit, start in zip(limits, wanted, strict=True)] == [True] * len(wanted)


def test_every_key_of_metadata_is_there() -> None:
    keys = [
        value
        for name, value in vars(protocol).items()
        if name.endswith("_METADATA") and f"`{value}`" not in section("Metadata")
    ]
    assert keys == []


@pytest.mark.parametrize("options", [ClientSettings, GRPCServerConfig])
def test_every_option_is_in_the_reference(options: type[ClientSettings] | type[GRPCServerConfig]) -> None:
    first_cells = {row[0] for row in rows_of(REFERENCE.read_text())}
    names = {field.name for field in fields(options)} - {"addresses"}
    assert {name for name in names if f"`{name}`" not in first_cells} == set()


@pytest.mark.slow
def test_the_stock_client_runs_as_written(tmp_path: Path) -> None:
    run_page(PAGE, tmp_path)
