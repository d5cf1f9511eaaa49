"""Generation by hand: what `generate` does with Bottom, Trunk and Top, one token after the other.

    python examples/generate_with_cache.py                      with a server of its own, in this process
    python examples/generate_with_cache.py localhost:50051      with a running quickstart_server.py

Each part keeps the keys and values of its own layers. Those of the Trunk stay on the server, in a session: after the
prompt, one token's hidden state goes there and one comes back.
"""

import sys
from contextlib import ExitStack

import torch

from splitlearn_comm.quickstart import Client
from splitlearn_core import load_part, load_tokenizer
from splitlearn_manager.quickstart import ManagedServer

PROMPT = "import os\n\n\ndef main():\n"
NUM_TOKENS = 40


@torch.inference_mode()
def generate(client: Client, input_ids: torch.Tensor) -> torch.Tensor:
    points = client.get_info().split_points  # cut where the server is cut
    bottom, top = load_part("builtin", "bottom", points), load_part("builtin", "top", points)
    bottom_kv = top_kv = None
    tokens = new = input_ids
    with client.session() as session:
        for _ in range(NUM_TOKENS):
            hidden, bottom_kv = bottom(new, past_key_values=bottom_kv, use_cache=True)
            hidden = session.step(hidden)  # the only thing that leaves this machine, and what comes back
            logits, top_kv = top(hidden, past_key_values=top_kv, use_cache=True)
            new = logits[:, -1:].argmax(-1)
            tokens = torch.cat((tokens, new), dim=1)
        # The last token has been chosen, and not been fed in.
        assert session.position == tokens.shape[1] - 1
    return tokens


def main(address: str | None = None) -> None:
    tokenizer = load_tokenizer("builtin")
    with ExitStack() as stack:
        if address is None:
            address = stack.enter_context(ManagedServer(port=0)).address
        client = stack.enter_context(Client(address))
        tokens = generate(client, tokenizer(PROMPT, return_tensors="pt").input_ids)
    print(tokenizer.decode(tokens[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
