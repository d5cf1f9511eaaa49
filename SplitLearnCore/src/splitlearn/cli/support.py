"""`splitlearn support`: what can be cut."""


def support() -> None:
    """List the architectures of transformers: supported, or refused and why."""
