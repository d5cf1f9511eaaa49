"""The KV cache of a part."""
