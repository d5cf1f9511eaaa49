"""Generate text with a model whose middle layers run on a server. Start quickstart_server.py first.

    python examples/quickstart_client.py                             the built-in model, at port 50051 of this machine
    python examples/quickstart_client.py 10.0.0.7:50051 gpt2 "Once upon a time"

The embeddings, the first and the last layers and the head run here. The server never sees the text, the token ids or
the logits, only hidden states (which is not the same as secrecy: see the README).
"""

import sys

from transformers import TextStreamer

from splitlearn import SplitModelForCausalLM
from splitlearn_core import load_tokenizer


def main(address: str = "localhost:50051", model_id: str = "builtin", prompt: str = "def read_lines(path):\n") -> None:
    tokenizer = load_tokenizer(model_id)
    model = SplitModelForCausalLM.from_pretrained(model_id, trunk=address)

    a, b = model.split_points
    print(f"# layers {a} to {b - 1} of {model.config.num_hidden_layers} run at {address}\n")

    # From here on it is a Hugging Face model like any other.
    model.generate(
        **tokenizer(prompt, return_tensors="pt"),
        max_new_tokens=60,
        pad_token_id=tokenizer.eos_token_id,
        streamer=TextStreamer(tokenizer),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
