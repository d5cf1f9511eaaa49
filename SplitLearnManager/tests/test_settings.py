"""The configuration of a server: file, environment and flags, and what is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch

from splitlearn_comm.server import ClientLimits, ServerTLS, TokenFile
from splitlearn_manager import LifecycleConfig, ModelSpec, ServerConfig
from splitlearn_manager.errors import ConfigurationError
from splitlearn_manager.settings import ServeSettings, read_environment, read_file, settings_from

COMPLETE = """
host = "127.0.0.2"
port = 0
log_level = "warning"
managed = true

[server]
max_sessions = 3
drain_timeout_s = 1.5
refuse_nonfinite = false
max_trainings = 2
allow_full_training = true
tokens = "tokens.txt"
operators = ["ops", "certificate:admin"]
tls = {certificate = "c.pem", key = "k.pem", client_ca = "a.pem"}
client_limits = {max_calls = 4}

[lifecycle]
memory_bytes = {cpu = 1_000, "cuda:0" = 2_000}
may_unload_idle = true

[[models]]
name = "small"
compile = true
split_points = [2, 6]
dtype = "bfloat16"

[[models]]
model = "org/Some Model"
kv_bytes = 0
max_trainings = 1
allow_full_training = false
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "server.toml"
    path.write_text(text)
    return path


def test_a_file_says_everything(tmp_path: Path) -> None:
    assert settings_from(("file", read_file(write(tmp_path, COMPLETE)))) == ServeSettings(
        host="127.0.0.2",
        port=0,
        log_level="warning",
        managed=True,
        server=ServerConfig(
            max_sessions=3,
            drain_timeout_s=1.5,
            refuse_nonfinite=False,
            max_trainings=2,
            allow_full_training=True,
            tokens=TokenFile("tokens.txt"),
            operators=("ops", "certificate:admin"),
            tls=ServerTLS(certificate="c.pem", key="k.pem", client_ca="a.pem"),
            client_limits=ClientLimits(max_calls=4),
        ),
        lifecycle=LifecycleConfig(memory_bytes={"cpu": 1000, "cuda:0": 2000}, may_unload_idle=True),
        models=(
            ModelSpec(name="small", compile=True, split_points=(2, 6), dtype=torch.bfloat16),
            ModelSpec(
                name="Some-Model", model="org/Some Model", kv_bytes=0, max_trainings=1, allow_full_training=False
            ),
        ),
    )


def test_nothing_said_is_the_built_in_model_in_process() -> None:
    assert settings_from(("file", {}), ("flags", {})) == ServeSettings()
    assert not ServeSettings().managed


def test_the_environment_says_the_same() -> None:
    said = read_environment(
        {
            "SPLITLEARN_PORT": "7",
            "SPLITLEARN_HOST": "10",
            "SPLITLEARN_MODELS": "gpt2, small=builtin",
            "SPLITLEARN_SERVER_MAX_SESSIONS": "3",
            "SPLITLEARN_SERVER_MAX_TRAININGS": "5",
            "SPLITLEARN_SERVER_ALLOW_FULL_TRAINING": "true",
            "SPLITLEARN_SERVER_TOKENS": "tokens.txt",
            "SPLITLEARN_SERVER_OPERATORS": '["ops"]',
            "SPLITLEARN_SERVER_CLIENT_LIMITS_MAX_CALLS": "4",
            "SPLITLEARN_SERVER_TLS_CERTIFICATE": "c.pem",
            "SPLITLEARN_SERVER_TLS_KEY": "k.pem",
            "SPLITLEARN_LIFECYCLE_MEMORY_BYTES": "{cpu = 1000}",
            "SPLITLEARN_TOKEN": "of a client",
            "SPLITLEARN_CACHE": "elsewhere",
            "PORT": "8",
        }
    )
    settings = settings_from(("the environment", said))
    assert (settings.host, settings.port, settings.managed) == ("10", 7, True)
    assert settings.models == (ModelSpec(name="gpt2", model="gpt2"), ModelSpec(name="small"))
    assert settings.server == ServerConfig(
        max_sessions=3,
        max_trainings=5,
        allow_full_training=True,
        tokens=TokenFile("tokens.txt"),
        operators=("ops",),
        client_limits=ClientLimits(max_calls=4),
        tls=ServerTLS(certificate="c.pem", key="k.pem"),
    )
    assert settings.lifecycle.memory_bytes == {"cpu": 1000}


def test_flags_go_before_the_environment_and_that_before_the_file() -> None:
    file = {"port": 1, "host": "a", "log_level": "error", "server": {"max_sessions": 1, "drain_timeout_s": 1.0}}
    environment = {"port": 2, "host": "b", "server": {"max_sessions": 2}}
    flags = {"port": 3, "server": {"metrics_port": 0}}
    settings = settings_from(("file", file), ("environment", environment), ("flags", flags))
    assert (settings.port, settings.host, settings.log_level) == (3, "b", "error")
    assert settings.server == ServerConfig(max_sessions=2, drain_timeout_s=1.0, metrics_port=0)


@pytest.mark.parametrize(
    ("tables", "is_managed"),
    [
        ([{"model": "gpt2", "dtype": "float32", "compile": True}], False),
        ([{"model": "gpt2", "max_trainings": 1, "allow_full_training": True}], False),
        ([{"model": "gpt2", "name": "small"}], True),
        ([{"model": "gpt2", "kv_bytes": 0}], True),
        ([{"model": "gpt2"}, {"model": "builtin"}], True),
        ([], True),
    ],
)
def test_what_a_process_of_its_own_is_needed_for(tables: list[dict[str, Any]], is_managed: bool) -> None:
    assert settings_from(("file", {"models": tables})).managed is is_managed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "unknown key 'prot'; there are models, managed, host, port, "),
        ("[server]\nmax_sesions = 1", "unknown key 'server.max_sesions'; there are server.max_sessions, "),
        ("[server.tls]\ncert = 'c'", "unknown key 'server.tls.cert'; there are server.tls.certificate, "),
        ("[lifecycle]\nx = 1", "unknown key 'lifecycle.x'; there are lifecycle.memory_bytes, "),
        ("[[models]]\ncolour = 'red'", "unknown key 'models.colour'; there are name, model, "),
        ("server = 3", "server must be a table; got 3"),
        ("lifecycle = {memory_bytes = 3}", "lifecycle.memory_bytes must be a table; got 3"),
        ("models = ['gpt2']", "models must be a list of tables: begin each with a line [[models]]"),
        ("port = ", "is no TOML: "),
        ("\x80", "is no TOML: "),
    ],
)
def test_an_unknown_key_is_an_error_naming_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "server.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationError) as caught:
        read_file(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert caught.value.code.name == "INVALID_ARGUMENT"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.toml cannot be read: No such file or directory"):
        read_file(tmp_path / "none.toml")


@pytest.mark.parametrize("name", ["SPLITLEARN_SERVER_MAX_SESIONS", "SPLITLEARN_LIFECYCLE_X", "SPLITLEARN_SERVER_TLS"])
def test_a_variable_that_names_no_key(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"the environment variable {name} names no key"):
        read_environment({name: "1"})


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"port": 70000}, "port must be a number from 0 to 65535; got 70000"),
        ({"port": True}, "port must be a number"),
        ({"host": 3}, "host must be text; got 3"),
        ({"models": [{}, {"name": "b"}], "server": {}, "host": None}, "host must be text; got None"),
        ({"managed": "yes"}, "managed must be true or false; got 'yes'"),
        ({"server": {"max_sessions": "many"}}, "max_sessions must be a number greater than zero; got 'many'"),
        ({"server": {"tokens": {"a": "b"}}}, "server.tokens must be the path of a token file"),
        ({"server": {"tls": {"certificate": "c"}}}, "server.tls needs certificate and key; there is no key"),
        ({"server": {"operators": ["ops"]}}, "operators are known by their tokens or certificates"),
        ({"lifecycle": {"max_restarts": -1}}, "max_restarts must be a number of at least 0; got -1"),
        ({"models": [{"split_points": 3}]}, "split_points must be two whole numbers"),
        ({"models": [{"compile": 1}]}, "compile must be true or false; got 1"),
        ({"models": [{"model": 3}]}, "model must be text; got 3"),
        ({"models": [{}, {}]}, "two models are builtin version 1"),
        ({"models": [{}, {"name": "b"}], "managed": False}, "a server that is not managed holds one model; got 2"),
    ],
)
def test_a_value_that_cannot_be(tree: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings_from(("server.toml", tree), ("the environment", {}), ("the command line", {"log_level": "info"}))
    assert str(caught.value).startswith("server.toml and the command line: ")
    assert words in str(caught.value)


def test_a_level_that_is_none() -> None:
    with pytest.raises(
        ConfigurationError, match=r"server\.toml: log_level must be one of debug, info, warning, error; got"
    ):
        settings_from(("server.toml", {"log_level": "loud"}))
