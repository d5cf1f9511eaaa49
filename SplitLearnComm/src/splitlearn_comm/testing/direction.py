"""The two ways of a connection."""

from __future__ import annotations

from enum import Enum


class Direction(Enum):
    """Which way something goes."""

    TO_SERVER = "to the server"
    """What a client sends: requests."""
    TO_CLIENT = "to the client"
    """What a server sends: replies."""


def directions(direction: Direction | None) -> tuple[Direction, ...]:
    """The one given; both for None."""
    return tuple(Direction) if direction is None else (direction,)
