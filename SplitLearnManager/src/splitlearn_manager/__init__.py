"""Hosts the Trunk of split language models for many clients."""
