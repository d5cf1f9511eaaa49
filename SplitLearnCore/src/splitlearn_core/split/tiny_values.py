"""The numbers that make a configuration tiny; one row a field name, and one a family that needs other values."""

from collections.abc import Callable
from typing import Any, Final

DEPTH: Final = object()
"""Stands for the number of layers."""

OTHER_TOKEN: Final = 3
"""Every special token but padding, begin and end."""


def repeated(*kinds: str) -> Callable[[int], list[str]]:
    """Return what makes a list with one entry a layer out of a pattern."""
    return lambda num_layers: [kinds[index % len(kinds)] for index in range(num_layers)]


SIZES: Final[dict[str, Any]] = {
    # depth
    "num_hidden_layers": DEPTH,
    "num_layers": DEPTH,
    "n_layer": DEPTH,
    "n_layers": DEPTH,
    "encoder_layers": DEPTH,
    "decoder_layers": DEPTH,
    "num_encoder_layers": DEPTH,
    "num_decoder_layers": DEPTH,
    # width
    "vocab_size": 128,
    "vocab_size_per_layer_input": 128,
    "shape_vocab_size": 32,
    "pronunciation_vocab_size": 32,
    "hidden_size": 32,
    "hidden_size_per_layer_input": 8,
    "shape_embed_dim": 16,
    "pronunciation_embed_dim": 16,
    "router_hidden_size": 16,
    "hc_lowrank": 8,
    "d_model": 32,
    "n_embd": 32,
    "emb_dim": 32,
    "embedding_size": 16,
    "input_embedding_size": 16,
    "output_embedding_size": 48,
    "word_embed_proj_dim": 16,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "n_inner": 64,
    "dff": 64,
    "dim_ff": 64,
    "d_inner": 64,
    "ffn_hidden_size": 64,
    "dense_intermediate_size": 64,
    "intermediate_size_mlp": 64,
    "is_decoder": True,
    "is_encoder_decoder": False,
    # heads
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 8,
    "swa_head_dim": 8,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "global_head_dim": 8,
    "d_head": 8,
    "dim_head": 8,
    "kv_channels": 8,
    "rotary_dim": 4,
    # positions
    "max_position_embeddings": 256,
    "n_positions": 256,
    "n_ctx": 256,
    "max_seq_len": 256,
    "context_length": 256,
    "max_target_positions": 256,
    "sliding_window": 8,
    "sliding_window_size": 8,
    "window_size": 8,
    "attention_window_size": 8,
    "attention_chunk_size": 8,
    "local_attention": 16,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "num_expert_group": 2,
    "moe_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_experts_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "zero_expert_num": 2,
    # latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "index_head_dim": 16,
    "index_n_heads": 4,
    "index_topk": 8,
    "o_lora_rank": 16,
    # recurrent layers
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "mamba_d_ssm": 64,
    "mamba_dt_rank": 4,
    "state_size": 8,
    "ssm_state_size": 8,
    "time_step_rank": 4,
    "n_groups": 1,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "chunk_size": 8,
    "lru_width": 32,
    "attention_hidden_size": 32,
    # special tokens
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

WHERE_THERE_IS: Final[dict[str, dict[str, Any]]] = {
    # Latent attention has keys and values for every head.
    "kv_lora_rank": {"num_key_value_heads": 4},
}
"""Values that replace those above in families with a certain field."""

_ROPE: Final = {"rope_type": "default", "rope_theta": 10000.0}

EXCEPTIONS: Final[dict[str, dict[str, Any]]] = {
    "bamba": {"attn_layer_indices": [1, 3, 5]},
    "cohere_compass_text": {
        "layer_types": repeated("sliding_attention", "full_attention"),
        "rope_parameters": {
            "sliding_attention": {**_ROPE, "mrope_section": [2, 1, 1]},
            "full_attention": {**_ROPE, "mrope_section": [2, 1, 1]},
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_text": {
        "num_key_value_heads": 4,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "gemma3n_text": {"num_kv_shared_layers": 2, "layer_types": repeated("sliding_attention", "full_attention")},
    "gemma4_text": {"hidden_size_per_layer_input": 0},
    "gemma4_unified_text": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"attention_types": lambda num_layers: [[["global", "local"], num_layers // 2]]},
    "granitemoehybrid": {"layer_types": repeated("linear_attention", "full_attention")},
    "lfm2_moe": {"layer_types": repeated("conv", "full_attention")},
    "mamba2": {"num_heads": 8},
    "nemotron_h": {"layers_block_type": repeated("linear_attention", "moe", "full_attention", "mlp")},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba2": {"layers_block_type": repeated("linear_attention", "hybrid")},
    "zaya": {"num_experts_per_tok": 1},
}
"""Values of single families; a function makes them of the number of layers."""
