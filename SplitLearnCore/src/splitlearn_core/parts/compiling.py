"""`torch.compile` for the layers of a part. What cannot be compiled stays eager, and one warning says why.

Compiled is the forward of each layer that the part holds, not the part's own: entry and exit are hooks around the
layers, a client model asks its trunk between two of them, and none of that is in a graph.

Tensor shapes: B rows, T tokens, H hidden size.
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from itertools import count
from types import MethodType
from typing import Any

import torch
from torch import nn

from splitlearn_core.cache.rows import RowsCache
from splitlearn_core.parts.bottom import Bottom
from splitlearn_core.parts.client import SplitModel
from splitlearn_core.parts.no_trunk import NoTrunk
from splitlearn_core.parts.part import CutModel, Part, going_on
from splitlearn_core.split.layers import decoder_config, find_layers

logger = logging.getLogger(__name__)
_numbers = count()

Backend = str | Callable[..., Any]
"""Name of a backend of `torch.compile`, or one itself."""
SHORTEST_PIECE = 9
"""Tokens of a piece of the warm-up's prompt at least."""
MAX_GRAPHS = 64
"""Kinds of inputs that one layer is compiled for: with gradients or without, one row or several, a mask or none, …"""
GRAPH_LIMIT: dict[str, Any] = (
    {"recompile_limit": MAX_GRAPHS} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}
)
"""Older versions of torch have a limit of their own, 8, which is for the whole process."""
TOO_MANY_GRAPHS: tuple[type[Exception], ...] = tuple(
    vars(torch._dynamo.exc)[name]
    for name in ("FailOnRecompileLimitHit", "FailOnCacheLimitHit")
    if name in vars(torch._dynamo.exc)
)
"""What torch raises where one more would be over the limit, by its names now and before: no kind of its usual error."""
NO_GRAPH: tuple[type[Exception], ...] = (torch._dynamo.exc.TorchDynamoException, *TOO_MANY_GRAPHS)
"""What torch raises where there is no graph for an input, and nothing of the layer has run."""
TOLERANCE = 1e-5
"""By how much the warm-up's results may differ, as a share of the largest one where that is above 1."""


class Compilation:
    """Whether the layers of one part run compiled.

    Args:
        name: what the part is, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.is_warming_up = True
        """Whether what cannot be compiled is an error: nobody depends on it yet."""
        self.failure: str | None = None
        """Why all of them run eagerly; None while they do not."""

    def give_up(self, error: Exception) -> None:
        """Run eagerly from now on, and say why."""
        self.failure = reason_of(error)
        logger.warning("%s is not compiled and runs as it is: %s", self._name, self.failure)


class CompiledForward:
    """A layer's forward as one graph, made when it first runs, and made again for inputs of another kind.

    What cannot be made runs eagerly: nothing of a graph has run before all of it is there. So does a forward that
    several sessions share: attention over keys of any number of sessions, where they lie, is no one graph. A copy of
    the layer has the architecture's own forward, because this one goes on with the weights of the original.

    Args:
        layer: whose forward it is.
        compilation: of all layers of the part.
        backend: of `torch.compile`.
    """

    def __init__(self, layer: nn.Module, compilation: Compilation, backend: Backend) -> None:
        self._layer = layer
        self._compilation = compilation
        self._eager = own_forward(layer)
        self._compiled = torch.compile(
            with_own_code(self._eager), fullgraph=True, dynamic=True, backend=backend, **GRAPH_LIMIT
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer; arguments, result and errors are those of its own forward."""
        if self._compilation.failure is not None or is_of_several_sessions(*args, *kwargs.values()):
            return self._eager(*args, **kwargs)
        try:
            return self._compiled(*args, **kwargs)
        except NO_GRAPH as error:
            if self._compilation.is_warming_up:
                raise
            output = self._eager(*args, **kwargs)  # raises by itself where the inputs are to blame
            self._compilation.give_up(error)
            return output

    def __reduce__(self) -> tuple[Any, ...]:
        return own_forward, (self._layer,)


def is_of_several_sessions(*inputs: Any) -> bool:
    """Whether the cache among a layer's inputs is that of several sessions, for one forward."""
    return any(isinstance(each, RowsCache) for each in inputs)


def own_forward(layer: nn.Module) -> Callable[..., Any]:
    """Return the forward that a layer has from its class."""
    return MethodType(type(layer).forward, layer)


def with_own_code(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls another, and that torch takes for no other function.

    Torch counts graphs by code object, up to a limit. A graph that reads a cache is of one layer, by its index, and the
    forwards of all layers of all models of transformers are one code object.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    run.__code__ = run.__code__.replace(co_name=f"run_{next(_numbers)}")
    return run


def compile_part(part: CutModel, *, backend: Backend = "inductor", inference: bool = False) -> bool:
    """Compile the layers that a part or a client model holds, in place, and warm them up with a prompt and tokens.

    Parameters, hooks, caches and what the part returns stay as they are. Steps of other kinds than the warm-up's (with
    gradients, several rows, padding) compile when the first of them comes. Forwards that several sessions share run as
    they are. The trunk behind a client model is neither asked nor compiled.

    Args:
        part: Bottom, Trunk, Top or client model, in the mode and on the device that it will be used with.
        backend: of `torch.compile`; the default needs a C++ compiler on the CPU.
        inference: warm up as an engine runs sessions, under `torch.inference_mode`, which is of another kind than
            `torch.no_grad`.

    Returns:
        Whether it is compiled. If not, it is as it was, and the log has the reason.
    """
    undo_compiling(part)
    expected = warm_up(part, inference=inference)
    compilation = Compilation(named(part))
    for layer in own_layers(part):
        vars(layer)["forward"] = CompiledForward(layer, compilation, backend)
    try:
        check_same(warm_up(part, inference=inference), expected)
    except Exception as error:  # a compiler that is not there, that does not understand, that is wrong: all the same
        undo_compiling(part)
        compilation.give_up(error)
        return False
    compilation.is_warming_up = False
    logger.info("%s is compiled: %d layers", named(part), len(part.cut.kept))
    return True


def is_compiled(part: CutModel) -> bool:
    """Whether the layers of a part were compiled."""
    return any(isinstance(vars(layer).get("forward"), CompiledForward) for layer in own_layers(part))


def undo_compiling(part: CutModel) -> None:
    """Give the layers of a part the architecture's own forward back."""
    for layer in own_layers(part):
        if isinstance(vars(layer).get("forward"), CompiledForward):
            del vars(layer)["forward"]


def own_layers(part: CutModel) -> Iterator[nn.Module]:
    """Iterate over the layers that a part holds."""
    layers = find_layers(part).layers
    return (layers[index] for index in part.cut.kept)


def warm_up(part: CutModel, *, inference: bool) -> list[torch.Tensor]:
    """Run a prompt and two tokens more with a cache; return what came out of each step, [1, T, …].

    Args:
        part: what is to be warm.
        inference: run as an engine runs a session of it, under `torch.inference_mode`, told the positions, and with a
            prompt in two pieces.
    """
    with torch.inference_mode() if inference else torch.no_grad():
        inputs = warm_up_inputs(part, num_pieces=2 if inference else 1)
        if isinstance(part, SplitModel):
            return _warm_up_client(part, inputs)
        assert isinstance(part, Part)
        cache, outputs = part.new_cache(), []
        for each in inputs:
            positions = going_on(1, cache.position, each.shape[1], part.device) if inference else None
            outputs.append(part(each, position_ids=positions, past_key_values=cache))
        return outputs


def warm_up_inputs(part: CutModel, num_pieces: int) -> list[torch.Tensor]:
    """Return a prompt in pieces, and two tokens: ids [1, T], or hidden states [1, T, H] where no tokens come in."""
    lengths = warm_up_lengths(part, num_pieces)
    total = sum(lengths)
    # Copies, because a graph made for a part of another tensor is for no tensor that stands alone.
    if isinstance(part, (Bottom, SplitModel)):
        ids_1T = torch.arange(total, device=part.device).unsqueeze(0) % part.config.get_text_config().vocab_size
        return [ids.clone() for ids in ids_1T.split_with_sizes(lengths, dim=1)]
    generator = torch.Generator().manual_seed(0)
    hidden_1TH = torch.randn(1, total, part.hidden_size, generator=generator)
    sent_1TH = hidden_1TH.to(part.device, part.dtype)
    return [hidden.clone() for hidden in sent_1TH.split_with_sizes(lengths, dim=1)]


def warm_up_lengths(part: CutModel, num_pieces: int) -> tuple[int, ...]:
    """Return the tokens of the warm-up's steps: a prompt in pieces, and two more tokens.

    Torch takes sizes that are equal for one and the same: were there as many tokens as heads, or as many new as cached
    ones, a graph would be for that length only. So all of these differ.
    """
    config = decoder_config(part.config).to_dict()
    met = {value for value in config.values() if isinstance(value, int)}
    if (heads := config.get("num_attention_heads")) in met - {0}:
        met.add(part.hidden_size // heads)
    pieces: list[int] = []
    for length in count(SHORTEST_PIECE):
        total = sum(pieces) + length
        if len(pieces) < num_pieces and not {length, total, total + 1} & met:
            pieces.append(length)
            met |= {length, total, total + 1}
        if len(pieces) == num_pieces:
            break
    return (*pieces, 1, 1)


def _warm_up_client(model: SplitModel, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    trunk = model.trunk
    model.trunk = NoTrunk(trunk.info)
    try:
        cache = model.new_cache()
        return [model(ids, past_key_values=cache, use_cache=True).logits for ids in inputs]
    finally:
        model.trunk = trunk


def check_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Compare the results of two warm-ups.

    Raises:
        ValueError: they differ by more than can be expected of sums in another order.
    """
    for now, before in zip(actual, expected, strict=True):
        # Half precision keeps three or two digits: what is equal there differs by single units of the last one.
        allowed = max(TOLERANCE, 4 * torch.finfo(before.dtype).eps if before.dtype.itemsize < 4 else 0.0)
        difference = float((now - before).abs().max() / before.abs().max().clamp(min=1))
        if not difference <= allowed:
            raise ValueError(
                f"compiled, a prompt of {expected[0].shape[1]} tokens and two more give other results: they differ by "
                f"{difference:.1e}, and at most {allowed:.0e} was expected"
            )


def named(part: CutModel) -> str:
    """Say which part of what it is."""
    return f"the {part.kind.__name__} of {part.architecture.__name__}"


def reason_of(error: Exception) -> str:
    """Return what an error says, short: of torch's, whose first line often only names the cause, two lines."""
    if isinstance(error, TOO_MANY_GRAPHS) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # which names the limit; this one says only that it is a failure
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
