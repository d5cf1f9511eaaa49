"""Several sessions in one forward: a failure leaves all of them as they were."""

from typing import Any

import pytest
import torch

from splitlearn_core import Trunk, UnsupportedModelError
from splitlearn_core.cache.growing import grow_in_place
from splitlearn_core.cache.part_cache import PartCache
from splitlearn_core.cache.ragged import AttentionSwitch
from splitlearn_core.cache.rows import RowsCache
from splitlearn_core.cache.rows_layers import left_padded, rows_layer
from splitlearn_core.engine.joined import Share, run_joined
from splitlearn_core.parts.part import going_on
from tests.support.families import tiny_split

FAMILIES_OF_EACH_KIND = ("gpt2", "gemma2", "deepseek_v3", "falcon_h1", "qwen3_next")
"""Full attention, with windows, padded, states beside attention, states in place of attention."""


def filled(trunk: Trunk, num_tokens: int, seed: int = 0) -> PartCache:
    hidden = torch.randn(1, num_tokens, trunk.hidden_size, generator=torch.Generator().manual_seed(seed))
    cache = grow_in_place(trunk.new_cache())
    trunk(hidden, past_key_values=cache)
    return cache


def share(trunk: Trunk, cache: PartCache) -> Share:
    hidden = torch.randn(1, 1, trunk.hidden_size, generator=torch.Generator().manual_seed(9))
    return Share(cache, hidden, None, going_on(1, cache.position, 1, hidden.device))


def switch_of(trunk: Trunk, family: str) -> AttentionSwitch | None:
    return None if family == "deepseek_v3" else AttentionSwitch(trunk)


def contents(cache: PartCache) -> list[torch.Tensor]:
    found = []
    for layer in cache.own_slots():
        states = [getattr(layer, name, {}) for name in ("conv_states", "recurrent_states")]
        held = [getattr(layer, "keys", None), getattr(layer, "values", None), *(t for s in states for t in s.values())]
        found += [tensor for tensor in held if tensor is not None]
    return found


def last_layer(trunk: Trunk) -> Any:
    return (trunk.transformer.h if hasattr(trunk, "transformer") else trunk.model.layers)[trunk.cut.kept[-1]]


@pytest.mark.parametrize("family", FAMILIES_OF_EACH_KIND)
@torch.inference_mode()
def test_a_forward_that_fails_half_way_leaves_its_sessions_as_they_were(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = tiny_split(family).trunk
    caches = [filled(trunk, 12, 0), filled(trunk, 4, 1)]
    twins = [filled(trunk, 12, 0), filled(trunk, 4, 1)]
    with monkeypatch.context() as patch:
        # The trunk's first layer has appended the tokens, its last does not.
        patch.setattr(last_layer(trunk), "forward", lambda *_, **__: pytest.fail("half-way"))
        with pytest.raises(pytest.fail.Exception, match="half-way"):
            run_joined(trunk, [share(trunk, cache) for cache in caches], switch_of(trunk, family))
    assert [cache.position for cache in caches] == [12, 4]
    assert not any(cache.has_failed for cache in caches)
    for cache, twin in zip(caches, twins, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(contents(cache), contents(twin), strict=True))
    for cache, twin in zip(caches, twins, strict=True):
        expected = trunk(share(trunk, twin).hidden_RTH, past_key_values=twin)
        assert torch.equal(trunk(share(trunk, cache).hidden_RTH, past_key_values=cache), expected)


@pytest.mark.parametrize("family", FAMILIES_OF_EACH_KIND)
@torch.inference_mode()
def test_a_session_that_shared_a_forward_holds_what_it_would_hold_alone(family: str) -> None:
    trunk = tiny_split(family).trunk
    caches = [filled(trunk, 12, 0), filled(trunk, 4, 1)]
    twins = [filled(trunk, 12, 0), filled(trunk, 4, 1)]
    run_joined(trunk, [share(trunk, cache) for cache in caches], switch_of(trunk, family))
    for cache, twin in zip(caches, twins, strict=True):
        trunk(share(trunk, twin).hidden_RTH, position_ids=share(trunk, twin).position_ids_RT, past_key_values=twin)
        for ours, theirs in zip(contents(cache), contents(twin), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        assert (cache.position, cache.num_rows) == (twin.position, twin.num_rows)


@torch.inference_mode()
def test_ragged_keys_that_nobody_reads_are_noticed() -> None:
    trunk = tiny_split("gpt2").trunk
    caches = [filled(trunk, 5), filled(trunk, 3)]
    shares = [share(trunk, cache) for cache in caches]
    rows = RowsCache(caches, is_ragged=True)
    hidden = torch.cat([each.hidden_RTH for each in shares])
    positions = torch.cat([each.position_ids_RT for each in shares])
    # Without the switch the model looks at the new tokens only.
    with pytest.raises(ValueError, match="cannot use the keys of several sessions where they lie"):
        trunk.run_layers(hidden_BTH=hidden, position_ids=positions, cache=rows)
    rows.roll_back()
    assert [layer.get_seq_length() for cache in caches for layer in cache.own_slots()] == [5, 5, 3, 3]


@torch.inference_mode()
def test_a_cache_that_failed_takes_nobody_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = tiny_split("gpt2").trunk
    caches = [filled(trunk, 5), filled(trunk, 3)]
    monkeypatch.setattr(caches[1], "_has_failed", True)
    with pytest.raises(ValueError, match="start again with a new cache"):
        run_joined(trunk, [share(trunk, cache) for cache in caches], AttentionSwitch(trunk))
    assert caches[0].position == 5
    assert not caches[0].has_failed


def test_layers_of_an_unknown_kind_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="kind object cannot be put together"):
        rows_layer([object(), object()], [1, 1], 3, None)


def test_shorter_tensors_are_padded_on_the_left() -> None:
    joined = left_padded([torch.ones(1, 2, 3, 4), torch.ones(2, 2, 1, 4)], 3, dim=-2)
    assert joined.shape == (3, 2, 3, 4)
    assert joined[:, 0, :, 0].tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 1]]
    flat = left_padded([torch.ones(1, 1, 4), torch.ones(1, 3, 4)], 3, dim=1)
    assert flat[:, :, 0].tolist() == [[0, 0, 1], [1, 1, 1]]
