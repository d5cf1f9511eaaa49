"""From the options of a command to the model that they describe."""

from typing import Any

from splitlearn.cli.options import CutOptions, TrunkOptions, parse_dtype, parse_split_points
from splitlearn.cli.security import CallerOptions
from splitlearn.model import SplitModelForCausalLM
from splitlearn_core import SplitModel
from splitlearn_core.checkpoint.source import Source


def load_split(
    model: str,
    source: Source,
    *,
    trunk: TrunkOptions,
    cut: CutOptions,
    caller: CallerOptions,
    adapter: str | None = None,
    **connection: Any,
) -> SplitModel:
    """Load Bottom and Top here, and join them to the trunk.

    Args:
        model: as it was named.
        source: where that is; its commit counts, because the branch may go on meanwhile.
        trunk: which trunk.
        cut: where it is cut; its revision is that of the source.
        caller: how a trunk on a server is reached.
        adapter: name of an adapter that is kept there; None for none.
        **connection: further options of the connection to a server.

    Raises:
        OptionError, AddressError, CoreError: as `SplitModelForCausalLM.from_pretrained`, and what the groups refuse.
    """
    options: dict[str, Any] | None = None
    if trunk.trunk is not None:
        named = {"model": trunk.trunk_model} if trunk.trunk_model else {}
        options = {**caller.connection(trunk.trunk), **named, **connection}
    return SplitModelForCausalLM.from_pretrained(
        model,
        trunk=trunk.trunk,
        split_points=parse_split_points(cut.split_points),
        dtype=parse_dtype(cut.dtype),
        revision=source.commit,
        connection=options,
        adapter=adapter,
    )
