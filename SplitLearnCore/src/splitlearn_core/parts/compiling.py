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

from splitlearn_core.parts.bottom import Bottom
from splitlearn_core.parts.client import SplitModel
from splitlearn_core.parts.no_trunk import NoTrunk
from splitlearn_core.parts.part import CutModel, Part
from splitlearn_core.split.layers import find_layers

logger = logging.getLogger(__name__)
_numbers = count()

Backend = str | Callable[..., Any]
"""Name of a backend of `torch.compile`, or one itself."""
WARM_UP_TOKENS = (8, 1, 1)
"""Tokens of a prompt, and two more: only the second shows torch that the length of a cache changes."""
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

    What cannot be made runs eagerly: nothing of a graph has run before all of it is there. A copy of the layer has the
    architecture's own forward, because this one goes on with the weights of the original.

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
        if self._compilation.failure is not None:
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


def compile_part(part: CutModel, *, backend: Backend = "inductor") -> bool:
    """Compile the layers that a part or a client model holds, in place, and warm them up with a prompt and tokens.

    Parameters, hooks, caches and what the part returns stay as they are. Steps of other kinds than the warm-up's (with
    gradients, several rows, padding) compile when the first of them comes. The trunk behind a client model is neither
    asked nor compiled.

    Args:
        part: Bottom, Trunk, Top or client model, in the mode and on the device that it will be used with.
        backend: of `torch.compile`; the default needs a C++ compiler on the CPU.

    Returns:
        Whether it is compiled. If not, it is as it was, and the log has the reason.
    """
    undo_compiling(part)
    expected = warm_up(part)
    compilation = Compilation(named(part))
    for layer in own_layers(part):
        vars(layer)["forward"] = CompiledForward(layer, compilation, backend)
    try:
        check_same(warm_up(part), expected)
    except Exception as error:  # a compiler that is not there, that does not understand, that is wrong: all the same
        undo_compiling(part)
        compilation.give_up(error)
        return False
    compilation.is_warming_up = False
    logger.info("%s is compiled: %d layers", named(part), len(part.cut.kept))
    return True


def undo_compiling(part: CutModel) -> None:
    """Give the layers of a part the architecture's own forward back."""
    for layer in own_layers(part):
        if isinstance(vars(layer).get("forward"), CompiledForward):
            del vars(layer)["forward"]


def own_layers(part: CutModel) -> Iterator[nn.Module]:
    """Iterate over the layers that a part holds."""
    layers = find_layers(part).layers
    return (layers[index] for index in part.cut.kept)


@torch.no_grad()
def warm_up(part: CutModel) -> list[torch.Tensor]:
    """Run a prompt and two tokens more with a cache; return what came out of each, [1, T, …]."""
    if isinstance(part, SplitModel):
        return _warm_up_client(part)
    assert isinstance(part, Part)
    cache = part.new_cache()
    return [part(inputs, past_key_values=cache) for inputs in warm_up_inputs(part)]


def warm_up_inputs(part: CutModel) -> list[torch.Tensor]:
    """Return a prompt and two tokens: ids [1, T], or hidden states [1, T, H] where no tokens come in."""
    total = sum(WARM_UP_TOKENS)
    # Copies, because a graph made for a part of another tensor is for no tensor that stands alone.
    if isinstance(part, (Bottom, SplitModel)):
        ids_1T = torch.arange(total, device=part.device).unsqueeze(0) % part.config.get_text_config().vocab_size
        return [ids.clone() for ids in ids_1T.split_with_sizes(WARM_UP_TOKENS, dim=1)]
    generator = torch.Generator().manual_seed(0)
    hidden_1TH = torch.randn(1, total, part.hidden_size, generator=generator)
    sent_1TH = hidden_1TH.to(part.device, part.dtype)
    return [hidden.clone() for hidden in sent_1TH.split_with_sizes(WARM_UP_TOKENS, dim=1)]


def _warm_up_client(model: SplitModel) -> list[torch.Tensor]:
    trunk = model.trunk
    model.trunk = NoTrunk(trunk.info)
    try:
        cache = model.new_cache()
        return [model(ids, past_key_values=cache, use_cache=True).logits for ids in warm_up_inputs(model)]
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
                f"compiled, a prompt of {WARM_UP_TOKENS[0]} tokens and two more give other results: they differ by "
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
