"""GPT-2 across two machines: run `splitlearn serve gpt2 --host 0.0.0.0 --allow-insecure` on the other one, then here

    GPT2_TRUNK_SERVER=10.0.0.7:50051 python examples/gpt2_client.py "Once upon a time"

The text stays here, with the embeddings, layers 0, 1, 10 and 11 and the head; layers 2 to 9 run on the server.
This is in the clear, for anybody: docs/security.md says how to have TLS and tokens instead.
"""

import os
import sys
import time

from splitlearn import SplitModelForCausalLM
from splitlearn_core import load_tokenizer

NUM_TOKENS = 50


def main(prompt: str = "Once upon a time") -> None:
    address = os.environ.get("GPT2_TRUNK_SERVER", "localhost:50051")
    tokenizer = load_tokenizer("gpt2")
    model = SplitModelForCausalLM.from_pretrained("gpt2", trunk=address)

    started = time.perf_counter()
    tokens = model.generate(
        **tokenizer(prompt, return_tensors="pt"),
        max_new_tokens=NUM_TOKENS,
        do_sample=True,
        top_p=0.9,
        pad_token_id=tokenizer.eos_token_id,
    )
    elapsed_s = time.perf_counter() - started
    print(tokenizer.decode(tokens[0], skip_special_tokens=True))
    print(f"\n{1000 * elapsed_s / NUM_TOKENS:.0f} ms per token, with layers 2 to 9 at {address}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
