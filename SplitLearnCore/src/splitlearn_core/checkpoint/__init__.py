"""Checkpoints in Hugging Face format: where they are, which files a part needs, and their fingerprint."""
