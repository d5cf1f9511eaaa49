"""`codec="auto"` from the front door: what each codec loses is measured, and the choice is what travels."""

from pathlib import Path

import pytest
import torch

from splitlearn import SplitModelForCausalLM
from splitlearn.remote import RemoteTrunk
from splitlearn.wire_loss import measure_losses, sample_text, with_losses
from splitlearn_comm import AutoCodec, CodecPlan
from splitlearn_comm.codec import codec_named, kl_nats
from splitlearn_comm.testing import LinkEmulator, LinkQuality
from splitlearn_core import UnsupportedOptionError, load_split_model, load_tokenizer
from splitlearn_manager import ManagedServer
from tests.support.checkpoints import save_tiny
from tests.support.trunk_process import TrunkProcess

torch.set_num_threads(1)

SLOW = LinkQuality(bytes_per_s=1e6)
LOSSY = ("bf16", "fp16", "int8", "int4")


def test_the_losses_are_those_of_the_parts_with_codecs_between_them() -> None:
    ids_1T = sample_text("builtin", None)
    with ManagedServer(port=0) as server:
        model = SplitModelForCausalLM.from_pretrained(trunk=server.address)
        trunk = model.trunk
        losses = measure_losses(model, ids_1T, LOSSY)
        assert model.trunk is trunk
    bottom, trunk_part, top = load_split_model("builtin", split_points=model.split_points)
    with torch.no_grad():
        hidden_1TH = bottom(ids_1T)
        expected_1TV = top(trunk_part(hidden_1TH))
        for name in LOSSY:
            codec = codec_named(name)
            up_1TH = codec.decode(codec.encode(hidden_1TH))
            logits_1TV = top(codec.decode(codec.encode(trunk_part(up_1TH))))
            assert losses[name] == pytest.approx(kl_nats(logits_1TV, expected_1TV), rel=0.05, abs=1e-9)
    assert losses["fp16"] < losses["bf16"] < losses["int8"] < losses["int4"]


@pytest.mark.parametrize(("max_kl", "chosen"), [(None, {"zstd"}), (1e-2, {"int8"}), (0.0, {"zstd"})])
def test_the_choice_is_the_fastest_that_loses_no_more_than_is_accepted(max_kl: float | None, chosen: set[str]) -> None:
    prompt = load_tokenizer("builtin")("def fibonacci(n):\n", return_tensors="pt")
    with ManagedServer(port=0) as server, LinkEmulator(server.address, SLOW) as link:
        options = {"codec": "auto", "max_kl": max_kl}
        model = SplitModelForCausalLM.from_pretrained(trunk=link.address, connection=options)
        tokens = model.generate(**prompt, max_new_tokens=4, do_sample=False)
        trunk = model.trunk
        assert isinstance(trunk, RemoteTrunk)
        choice = trunk.codec_choices()[link.address]
        assert choice.codec in chosen
        assert str(choice).startswith(choice.codec)
        if max_kl is None:
            exact = SplitModelForCausalLM.from_pretrained(trunk=server.address)
            assert torch.equal(tokens, exact.generate(**prompt, max_new_tokens=4, do_sample=False))


@pytest.mark.slow
def test_a_checkpoint_without_a_tokenizer_says_what_to_give(trunks: TrunkProcess, tmp_path: Path) -> None:
    directory = save_tiny("gpt2", tmp_path / "tiny")
    with trunks.serving(directory) as address:
        options = {"codec": "auto", "max_kl": 1e-3}
        with pytest.raises(UnsupportedOptionError, match=r"makes no tokens.*AutoCodec\(max_kl=\.\.\., kl="):
            SplitModelForCausalLM.from_pretrained(str(directory), trunk=address, connection=options)
        given = AutoCodec(max_kl=1e-3, kl={"int8": 1e-4})
        model = SplitModelForCausalLM.from_pretrained(str(directory), trunk=address, connection={"codec": given})
        assert isinstance(model.trunk, RemoteTrunk)


def test_only_what_may_be_lossy_is_measured() -> None:
    losses: dict[str, float] = {}
    assert with_losses({}, losses) is None
    assert with_losses({"codec": "auto"}, losses) is None
    assert with_losses({"codec": "int8"}, losses) is None
    assert with_losses({"codec": AutoCodec(kl={"int8": 1.0}), "max_kl": 1.0}, losses) is None
    for codec in ("auto", AutoCodec(), CodecPlan(hidden="auto", kv="bf16")):
        options = with_losses({"codec": codec, "max_kl": 1e-3, "token": "t"}, losses)
        assert options is not None
        assert options["codec"].auto.kl is losses
        assert (options["max_kl"], options["token"]) == (1e-3, "t")
    assert with_losses({"codec": AutoCodec(max_kl=1e-3)}, losses) is not None
