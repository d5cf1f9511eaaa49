"""What is refused whatever a check says, and why: architectures whose layers share more than hidden states."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from transformers import PreTrainedConfig

REASONS: Final[dict[str, str]] = {
    "blt": "it turns bytes into patches of varying length between its stacks of layers",
    "cpmant": "its layers need the token ids and segments of the prompt",
    "deepseek_v4": "its layers need the token ids and hand on several streams",
    "gemma3n": "its layers hand on several streams, embeddings of their own and shared keys and values",
    "gemma3n_text": "its layers hand on several streams, embeddings of their own and shared keys and values",
    "gemma4_assistant": "it takes its keys and values from another model",
    "gemma4_unified_assistant": "it takes its keys and values from another model",
    "hrm_text": "it runs the same layers several times over",
    "hy_v4": "its layers hand on several streams and the choices of an indexer",
    "inkling2_text": "its layers look back at the outputs of earlier blocks",
    "longcat_flash": "each of its layers keeps two caches",
    "minimax": "it keeps a cache of its own kind",
    "mllama": "without an image it leaves out layers, also those before which a part begins or ends",
    "musicgen": "it takes the tokens of several codebooks at a time",
    "musicgen_melody": "it takes the tokens of several codebooks at a time",
    "openai-gpt": "it keeps no cache, so that a step cannot go on from the one before",
    "prophetnet": "its layers hand on several streams of different length",
    "qwen4_exp": "it keeps a cache of its own kind",
    "qwen4_exp_text": "it keeps a cache of its own kind",
    "reformer": "it keeps a cache of its own kind",
    "rwkv": "it keeps a cache of its own kind",
    "xlm": "it keeps the pieces of each layer in several lists, of which a cut finds one",
    "xlnet": "it keeps a cache of its own kind",
    "xlstm": "it keeps a cache of its own kind",
    "zamba": "its layers need the embeddings of the prompt and share weights",
    "zamba2": "its layers need the embeddings of the prompt and share weights",
    "zaya": "its routers hand a state on from layer to layer",
}
"""By model type; they stay refused where some cut of theirs would come out right."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A feature of single checkpoints that cannot be cut, whatever the family."""

    attribute: str
    """Name of the attribute of the decoder's configuration."""
    is_broken_by: Callable[[Any], bool]
    """Whether a value of the attribute is one that cannot be cut."""
    reason: str
    """The reason as a clause, ending with what would be needed."""
    model_types: frozenset[str] | None = None
    """Where the attribute means this; None for everywhere."""

    def is_broken(self, config: PreTrainedConfig) -> bool:
        """Whether a decoder's configuration has the feature."""
        if self.model_types is not None and config.model_type not in self.model_types:
            return False
        return self.is_broken_by(getattr(config, self.attribute, None))


LOOKING_BOTH_WAYS: Final = frozenset(
    {
        "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
        "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip
"""Encoders that are decoders on request only."""

CONDITIONS: Final = (
    Condition(
        attribute="is_encoder_decoder",
        is_broken_by=bool,
        reason="it is an encoder-decoder (its decoder alone needs is_encoder_decoder=False)",
    ),
    Condition(
        attribute="add_cross_attention",
        is_broken_by=bool,
        reason="its layers look at an encoder (add_cross_attention=True)",
    ),
    Condition(
        attribute="is_decoder",
        is_broken_by=lambda value: not value,
        reason="its layers look both ways (a decoder needs is_decoder=True)",
        model_types=LOOKING_BOTH_WAYS,
    ),
    Condition(
        attribute="use_learned_position_embeddings",
        is_broken_by=lambda value: value is False,
        reason="its positions are made from the token ids (use_learned_position_embeddings=False)",
        model_types=frozenset({"trocr"}),
    ),
    Condition(
        attribute="use_bidirectional_attention",
        is_broken_by=lambda value: value in (True, "all"),
        reason="its layers look both ways (use_bidirectional_attention is set)",
    ),
    Condition(
        attribute="hidden_size_per_layer_input",
        is_broken_by=bool,
        reason="its layers need the token ids for embeddings of their own (hidden_size_per_layer_input is not 0)",
    ),
    Condition(
        attribute="num_kv_shared_layers",
        is_broken_by=bool,
        reason="its last layers use keys and values of earlier ones (num_kv_shared_layers is not 0)",
    ),
    Condition(
        attribute="indexer_types",
        is_broken_by=lambda value: "shared" in (value or ()),
        reason="some of its layers use the choices of an earlier one's indexer (indexer_types has 'shared')",
    ),
)
