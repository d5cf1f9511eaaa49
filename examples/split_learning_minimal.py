"""Split learning in one process: Bottom and Top learn a sentence through a Trunk that stays as it is.

    python examples/split_learning_minimal.py

A look at the idea without a network: what would cross the wire is printed on the way. Hidden states go up and come
back, and with training their gradients take the same way in the other direction. Labels, and the loss, never do.
"""

import torch

from splitlearn import SplitModelForCausalLM
from splitlearn_core import LocalTrunk, load_part, load_tokenizer

SENTENCE = "the middle of this model never saw a word of this sentence"
NUM_STEPS = 12


class TalkingTrunk(LocalTrunk):
    """A trunk in this process that says what reaches it."""

    def compute(self, hidden_BTH, attention_mask=None, position_ids=None, *, training=False):
        print(f"  to the trunk: hidden states {list(hidden_BTH.shape)}", end="")
        if hidden_BTH.requires_grad:
            hidden_BTH.register_hook(lambda gradient: print(f", and from it: gradients {list(gradient.shape)}"))
        return super().compute(hidden_BTH, attention_mask, position_ids, training=training)


def main() -> None:
    trunk = load_part("builtin", "trunk").requires_grad_(False)
    model = SplitModelForCausalLM.from_pretrained("builtin", trunk=TalkingTrunk(trunk))
    batch = load_tokenizer("builtin")(SENTENCE, return_tensors="pt")

    # model.parameters() are those of Bottom and Top; the trunk's are elsewhere.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    losses = []
    for step in range(NUM_STEPS):
        loss = model(**batch, labels=batch.input_ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        print(f"step {step}: loss {losses[-1]:.3f}")
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
