"""The architecture, GPT-2's, and how a shallow model becomes a deeper one that computes the same."""

from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

HEAD_WIDTH = 32


def build_model(*, num_layers: int, width: int, vocab_size: int, context: int) -> GPT2LMHeadModel:
    """A GPT-2 with fresh weights, float32, without dropout; token 0 begins, ends and pads."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=context,
        n_embd=width,
        n_layer=num_layers,
        n_head=width // HEAD_WIDTH,
        # GPT-2's own approximation of GELU, in the one fused kernel that torch has for it.
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config)


@torch.no_grad()
def grown(model: GPT2LMHeadModel, *, num_layers: int) -> GPT2LMHeadModel:
    """A model of `num_layers` layers, a multiple of the present number, that computes what `model` computes.

    Each layer is followed by copies of itself whose outputs are set to zero: they pass the residual stream on, and
    learn from there. Copying layers is from Gong et al. 2019 (Progressive Stacking), keeping the function the same
    from Chen et al. 2016 (Net2Net). Early training costs less with few layers and learns as much.
    """
    config = model.config
    deep = build_model(
        num_layers=num_layers, width=config.n_embd, vocab_size=config.vocab_size, context=config.n_positions
    )
    copies = num_layers // config.n_layer
    _copy(model.transformer.wte, deep.transformer.wte)
    _copy(model.transformer.wpe, deep.transformer.wpe)
    _copy(model.transformer.ln_f, deep.transformer.ln_f)
    layers: Any = deep.transformer.h
    for index, layer in enumerate(layers):
        _copy(model.transformer.h[index // copies], layer)
        if index % copies:
            for projection in (layer.attn.c_proj, layer.mlp.c_proj):
                projection.weight.zero_()
                projection.bias.zero_()
    return deep


def _copy(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(source.state_dict())
