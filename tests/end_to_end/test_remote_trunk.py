"""A trunk on a server keeps the contract that a trunk in this process keeps."""

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from splitlearn import SplitModelForCausalLM
from splitlearn.remote import RemoteTrunk
from splitlearn_comm import ComputeFunction, FingerprintMismatchError, GRPCComputeServer
from splitlearn_comm.testing import Identity
from splitlearn_core import SplitPoints, Trunk, TrunkMismatchError, TrunkPort, UnsupportedOptionError
from splitlearn_core.parts.port import trunk_info
from splitlearn_core.testing import TrunkPortContract, random_hidden, tiny_trunk
from splitlearn_manager import ManagedServer
from splitlearn_manager.runtime.hosted_trunk import HostedTrunk

torch.set_num_threads(1)


@contextmanager
def remote(trunk: Trunk) -> Iterator[tuple[RemoteTrunk, GRPCComputeServer]]:
    with (
        GRPCComputeServer(HostedTrunk(trunk, name="tiny"), port=0) as server,
        RemoteTrunk.connect(server.address) as port,
    ):
        yield port, server


class TestRemoteTrunk(TrunkPortContract):
    @contextmanager
    def open_port(self, trunk: Trunk) -> Iterator[TrunkPort]:
        with remote(trunk) as (port, _):
            yield port


def test_hidden_states_are_converted_there_and_back() -> None:
    trunk = tiny_trunk().to(torch.bfloat16)
    hidden_BTH = random_hidden(1, 4)
    with torch.no_grad(), remote(trunk) as (port, _):
        assert port.info.dtype == torch.bfloat16
        output_BTH = port.compute(hidden_BTH)
        session = port.open_session()
        stepped_BTH = session.step(hidden_BTH)
        session.close()
        expected_BTH = trunk(hidden_BTH.bfloat16())
    assert output_BTH.dtype == stepped_BTH.dtype == torch.float32
    assert torch.equal(output_BTH, expected_BTH.float())
    assert torch.equal(stepped_BTH, expected_BTH.float())


def test_a_training_forward_is_refused_before_anything_is_sent() -> None:
    with remote(tiny_trunk()) as (port, server):
        with pytest.raises(UnsupportedOptionError, match="only a forward in train mode has a backward"):
            port.compute(random_hidden(1, 2).requires_grad_(), training=True)
        assert server.statistics().computes == 0


def test_an_abandoned_session_is_freed_by_the_next_call() -> None:
    with remote(tiny_trunk()) as (port, server):
        session = port.open_session()
        session.abandon()
        assert server.statistics().sessions_open == 1
        port.compute(random_hidden(1, 2))
        assert server.statistics().sessions_open == 0


def test_a_session_states_the_fingerprint() -> None:
    trunk = tiny_trunk()
    trunk.fingerprint = "that of the checkpoint"
    with remote(trunk) as (port, _):
        assert port.info.fingerprint == "that of the checkpoint"
        assert port.info == replace(trunk_info(trunk), fingerprint="that of the checkpoint")
        port.open_session().close()


def test_a_server_that_came_back_with_other_weights() -> None:
    old, new = tiny_trunk(seed=0), tiny_trunk(seed=1)
    old.fingerprint, new.fingerprint = "old", "new"
    with remote(old) as (port, server):
        server.stop()
        with GRPCComputeServer(HostedTrunk(new, name="tiny"), port=server.port):
            with pytest.raises(FingerprintMismatchError, match=r"fingerprint old:1-5, .* has new:1-5"):
                port.open_session()
            with pytest.raises(FingerprintMismatchError, match=r"fingerprint old:1-5, .* has new:1-5"):
                port.compute(random_hidden(1, 2))


def test_a_server_that_came_back_cut_elsewhere() -> None:
    old, new = tiny_trunk(), tiny_trunk()
    old.fingerprint = new.fingerprint = "same"
    new.split_points = SplitPoints(2, 4)
    with remote(old) as (port, server):
        server.stop()
        elsewhere = pytest.raises(FingerprintMismatchError, match=r"fingerprint same:1-5, .* has same:2-4")
        with GRPCComputeServer(HostedTrunk(new, name="tiny"), port=server.port), elsewhere:
            port.open_session()


def test_a_backward_through_the_wire_is_refused_and_not_forgotten() -> None:
    with remote(tiny_trunk()) as (port, _):
        for step in (port.compute, port.open_session().step):
            output = step(random_hidden(1, 2).requires_grad_())
            with pytest.raises(UnsupportedOptionError, match="only a forward in train mode has a backward"):
                output.sum().backward()


def test_a_training_step_of_a_session_is_refused_before_anything_is_sent() -> None:
    with remote(tiny_trunk()) as (port, server):
        session = port.open_session()
        with pytest.raises(UnsupportedOptionError, match="only a forward in train mode has a backward"):
            session.step(random_hidden(1, 2), training=True)
        assert server.statistics().steps == 0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps])
def test_a_model_with_a_connection_is_no_thing_to_copy(duplicate: Callable[[object], object]) -> None:
    with ManagedServer(port=0) as server:
        model = SplitModelForCausalLM.from_pretrained(trunk=server.address)
        with pytest.raises(UnsupportedOptionError, match=r"cannot be copied or pickled: copy model\.state_dict\(\)"):
            duplicate(model)


@pytest.mark.parametrize("service", [Identity()])
def test_a_server_without_a_trunk(service: ComputeFunction) -> None:
    with GRPCComputeServer(service, port=0) as server, pytest.raises(TrunkMismatchError, match=r"'Identity'.*no trunk"):
        RemoteTrunk.connect(server.address)
