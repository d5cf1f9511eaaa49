"""Sixteen sessions of one trunk through the engine, in one process, against one session and against a plain batch.

The trunk is [2:10] of GPT-2-small's shape, float32, on one thread. A step is one token of every session; the plain
batch is one session of sixteen rows with transformers' own cache, which is what joining could reach if it cost nothing.
"One session" through the engine is compared with calling the trunk, which is what a server without an engine does.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.marks import Mark, at_least
from benchmarks.pairs import interleaved, ratio_of
from benchmarks.processes import one_torch_thread
from splitlearn_core import Trunk, split_model
from splitlearn_core.engine import EngineLimits, RunTokens, TrunkEngine

NUM_SESSIONS = 16
PROMPTS = (64, 512)
SPLIT_POINTS = (2, 10)
OF_ONE, OF_PLAIN, ALONE = at_least(4.0), at_least(1.0), at_least(0.99)


def make_trunk() -> Trunk:
    """Return the trunk with random weights."""
    torch.manual_seed(0)
    _, trunk, _ = split_model(GPT2LMHeadModel(GPT2Config()).eval(), SPLIT_POINTS)
    return trunk


def engine_step(trunk: Trunk, num_sessions: int, prompt_len: int) -> Callable[[], object]:
    """Return a step of sessions that the engine has run the prompts of."""
    engine = TrunkEngine(trunk, EngineLimits(max_tokens=prompt_len))
    prompt = RunTokens(hidden_BTH=torch.randn(1, prompt_len, trunk.hidden_size))
    token = RunTokens(hidden_BTH=torch.randn(1, 1, trunk.hidden_size))

    def all_step(action: RunTokens) -> None:
        for index in range(num_sessions):
            engine.submit(str(index), action)
        ended = 0
        while ended < num_sessions:
            ended += len(engine.turn().results)

    for index in range(num_sessions):
        engine.open(str(index), client=str(index))
    all_step(prompt)
    return lambda: all_step(token)


def plain_step(trunk: Trunk, num_rows: int, prompt_len: int) -> Callable[[], object]:
    """Return a step of one session of so many rows, with the cache that transformers makes."""
    cache = trunk.new_cache()
    token = torch.randn(num_rows, 1, trunk.hidden_size)
    with torch.inference_mode():
        trunk(torch.randn(num_rows, prompt_len, trunk.hidden_size), past_key_values=cache)

    @torch.inference_mode()
    def step() -> object:
        return trunk(token, past_key_values=cache)

    return step


def tokens_per_s(step: Callable[[], object], num_sessions: int, num_steps: int) -> float:
    """Return how many tokens of all sessions come out in a second."""
    began_s = time.perf_counter()
    for _ in range(num_steps):
        step()
    return num_steps * num_sessions / (time.perf_counter() - began_s)


def compare(
    name: str,
    ours: tuple[Callable[[], object], int],
    theirs: tuple[Callable[[], object], int],
    mark: Mark,
    num_pairs: int,
    num_steps: int,
) -> None:
    """Print one line."""
    ours_per_s, theirs_per_s = interleaved(
        lambda: tokens_per_s(*ours, num_steps), lambda: tokens_per_s(*theirs, num_steps), num_pairs
    )
    print(
        f"  {name}: {mark.on(ratio_of(ours_per_s, theirs_per_s))}; "
        f"{statistics.median(ours_per_s):.0f} tokens a second, {statistics.median(theirs_per_s):.0f} there",
        flush=True,
    )


def main(num_pairs: int, num_steps: int) -> None:
    """Print the table."""
    one_torch_thread()
    trunk = make_trunk()
    for prompt_len in PROMPTS:
        print(f"{NUM_SESSIONS} sessions of {prompt_len} tokens and more, through the engine")
        many = engine_step(trunk, NUM_SESSIONS, prompt_len), NUM_SESSIONS
        one = engine_step(trunk, 1, prompt_len), 1
        compare("against one session", many, one, OF_ONE, num_pairs, num_steps)
        plain = plain_step(trunk, NUM_SESSIONS, prompt_len), NUM_SESSIONS
        compare("against a plain batch of 16", many, plain, OF_PLAIN, num_pairs, num_steps)
        compare(
            "one session against the trunk", one, (plain_step(trunk, 1, prompt_len), 1), ALONE, num_pairs, num_steps
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=21, help="interleaved pairs (at least 7)")
    parser.add_argument("--steps", type=int, default=4, help="steps in each measurement")
    arguments = parser.parse_args()
    main(arguments.pairs, arguments.steps)
