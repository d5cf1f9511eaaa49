"""Exact splits of Hugging Face decoder models: everything that happens inside one process."""
