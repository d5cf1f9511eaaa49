"""Tensors and sessions over gRPC between two Python processes; knows no model."""
