"""Caches that are not those of the trunk they are sent to: each is refused, none fails inside the model."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from splitlearn_comm import GRPCComputeClient, InvalidRequestError, KVEntries, SequenceTooLongError
from splitlearn_manager import ManagedServer
from tests.support.models import save_gpt2

HIDDEN_BTH = torch.linspace(-1, 1, 1 * 3 * 32).view(1, 3, 32)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GRPCComputeClient]:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_gpt2(directory)
    with ManagedServer(str(directory), port=0) as server, GRPCComputeClient(server.address) as client:
        yield client


def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[KVEntries], KVEntries]:
    def all_changed(cache: KVEntries) -> KVEntries:
        entries = [
            replace(entry, tensors={name: change(tensor) for name, tensor in entry.tensors.items()})
            for entry in cache.entries
        ]
        return replace(cache, entries=tuple(entries))

    return all_changed


SPOILED: dict[str, Callable[[KVEntries], KVEntries]] = {
    "too few layers": lambda cache: replace(cache, entries=cache.entries[:1]),
    "too many layers": lambda cache: replace(cache, entries=(*cache.entries, replace(cache.entries[0], layer=99))),
    "no layers": lambda cache: replace(cache, entries=()),
    "a layer twice": lambda cache: replace(cache, entries=cache.entries * 2),
    "another kind": lambda cache: replace(cache, entries=tuple(replace(e, kind="x") for e in cache.entries)),
    "more heads": changed(lambda keys: torch.cat((keys, keys), 1)),
    "narrower heads": changed(lambda keys: keys[..., :3]),
    "more rows": changed(lambda keys: torch.cat((keys, keys))),
    "no rows": changed(lambda keys: keys[:0]),
    "integers": changed(torch.Tensor.long),
    "another dtype": changed(torch.Tensor.double),
    "a dimension less": changed(lambda keys: keys[0]),
    "fewer tokens": changed(lambda keys: keys[:, :, :1]),
    "no tensors": lambda cache: replace(cache, entries=tuple(replace(e, tensors={}) for e in cache.entries)),
    "another position": lambda cache: replace(cache, position=2),
    "a position beyond all": lambda cache: replace(cache, position=2**40),
}


@pytest.mark.parametrize("name", SPOILED)
def test_it_is_refused_and_the_next_call_is_right(client: GRPCComputeClient, name: str) -> None:
    output, cache = client.compute(HIDDEN_BTH, use_cache=True)
    with pytest.raises(
        (InvalidRequestError, SequenceTooLongError), match=r"not those of this trunk|other rows|too long"
    ):
        client.compute(HIDDEN_BTH, past_key_values=SPOILED[name](cache))
    whole = client.compute(torch.cat((HIDDEN_BTH, HIDDEN_BTH), dim=1))
    assert torch.equal(client.compute(HIDDEN_BTH), output)
    torch.testing.assert_close(client.compute(HIDDEN_BTH, past_key_values=cache), whole[:, 3:], rtol=0, atol=1e-5)
