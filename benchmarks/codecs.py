"""What each codec makes of hidden states: bytes on the wire and loss, on the built-in model and real text.

Texts of 128 tokens from the Python standard library; hidden states [1, 128, H] go through the codec where they leave
the Bottom (up), where they leave the Trunk (down), or at both. The loss is the KL divergence of the next token's
distribution, of the model with the codec from the model without it, mean over all tokens, in nats; and how many of the
most likely tokens stay the same. Files of the standard library are what the model was trained on: it is at its surest
there. Last, what `auto` would choose over links of 1, 10, 100 and 1000 MB/s: lossless, and with the mark's KL accepted.
"""

import argparse
import statistics
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.servers import same_threads_everywhere
from splitlearn_comm.codec import TensorCodec, choose_codec, codec_named, codec_names, kl_nats, measure_cost
from splitlearn_core import Top, Trunk, load_split_model, load_tokenizer

NUM_TOKENS = 128
MARK_RATIO, MARK_KL = 0.27, 1e-3
LINKS_BYTES_PER_S = (1e6, 1e7, 1e8, 1e9)

Wire = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What the parts make of the texts without a codec; N texts, T tokens, H hidden size, V vocabulary."""

    up_NTH: torch.Tensor
    """Behind the Bottom."""
    down_NTH: torch.Tensor
    """Behind the Trunk."""
    logits_NTV: torch.Tensor
    """Behind the Top."""
    trunk: Trunk
    top: Top

    def logits_with(self, up: Wire, down: Wire) -> torch.Tensor:
        """Return [N, T, V]: the logits when the hidden states pass through these on their ways."""
        logits_NTV: torch.Tensor = self.top(down(self.trunk(up(self.up_NTH))))
        return logits_NTV


def read_texts(num_texts: int) -> torch.Tensor:
    """Return the first tokens [N, T] of so many files of the standard library, spread over its alphabet."""
    tokenizer = load_tokenizer("builtin")
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    # Twelve characters a token are more than enough: the model is not given the rest.
    starts = (path.read_text(errors="replace")[: 12 * NUM_TOKENS] for path in files)
    token_ids = [ids for ids in (tokenizer(start).input_ids for start in starts) if len(ids) >= NUM_TOKENS]
    step = len(token_ids) // num_texts
    return torch.tensor([ids[:NUM_TOKENS] for ids in token_ids[: step * num_texts : step]])


def prepare(num_texts: int) -> Texts:
    """Run the texts through the three parts."""
    bottom, trunk, top = load_split_model("builtin")
    up_NTH = bottom(read_texts(num_texts))
    down_NTH = trunk(up_NTH)
    return Texts(up_NTH=up_NTH, down_NTH=down_NTH, logits_NTV=top(down_NTH), trunk=trunk, top=top)


def through(codec: TensorCodec) -> Wire:
    """Return what sends each text by itself, as a client would, through a codec and back."""
    return lambda hidden_NTH: torch.cat([codec.decode(codec.encode(text_TH[None])) for text_TH in hidden_NTH])


def payload_ratio(codec: TensorCodec, hidden_NTH: torch.Tensor) -> float:
    """Return the median over texts of the bytes that travel over those of the elements."""
    payloads = [codec.pack(text_TH[None]) for text_TH in hidden_NTH]
    return statistics.median(payload.num_bytes / payload.tensor_bytes for payload in payloads)


def row(name: str, texts: Texts) -> tuple[str, float]:
    """Return the line of one codec, and its KL with both ways coded."""
    codec = codec_named(name)
    wire, nothing = through(codec), torch.Tensor.clone
    kl_up = kl_nats(texts.logits_with(wire, nothing), texts.logits_NTV)
    kl_down = kl_nats(texts.logits_with(nothing, wire), texts.logits_NTV)
    both_NTV = texts.logits_with(wire, wire)
    kl_both = kl_nats(both_NTV, texts.logits_NTV)
    same = (both_NTV.argmax(-1) == texts.logits_NTV.argmax(-1)).double().mean().item()
    ratio = max(payload_ratio(codec, texts.up_NTH), payload_ratio(codec, texts.down_NTH))
    line = f"  {name:5} {ratio:7.4f}   {kl_up:8.1e}   {kl_down:8.1e}   {kl_both:8.1e}   {same:7.2%}"
    if name == "int8":
        is_met = ratio <= MARK_RATIO and kl_both < MARK_KL
        line += f"   mark {MARK_RATIO} and {MARK_KL:g}: {'met' if is_met else 'MISSED'}"
    return line, kl_both


@torch.inference_mode()
def main(num_texts: int) -> None:
    """Print the tables."""
    same_threads_everywhere()
    texts = prepare(num_texts)
    num_tokens = texts.up_NTH.shape[0] * texts.up_NTH.shape[1]
    print(f"hidden states [1, {NUM_TOKENS}, {texts.up_NTH.shape[2]}] float32, {num_texts} texts, {num_tokens} tokens")
    print("  codec  bytes     KL up      KL down    KL both    same first choice")
    kl = {}
    for name in codec_names():
        line, kl[name] = row(name, texts)
        print(line, flush=True)
    costs = [measure_cost(codec_named(name), texts.up_NTH[:1], repeats=20) for name in codec_names()]
    for bandwidth in LINKS_BYTES_PER_S:
        for max_kl in (None, MARK_KL):
            print(f"  auto: {choose_codec(costs, bandwidth_bytes_per_s=bandwidth, max_kl=max_kl, kl=kl)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=24, help="number of texts")
    main(parser.parse_args().texts)
