"""Options in groups: a command takes a dataclass, and on the command line each of its fields is an option."""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from inspect import Parameter
from typing import Any


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command as typer takes it, of one whose parameters may be groups.

    Args:
        command: its parameters that are groups have a dataclass for their type, and come after a `*`. Each field of a
            group is `Annotated` with its option and has a default.

    Raises:
        ValueError: two options of one name.
    """
    signature = inspect.signature(command)
    groups: dict[str, Any] = {
        name: each.annotation for name, each in signature.parameters.items() if is_dataclass(each.annotation)
    }

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {name: group(**{f.name: given.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        command(**given, **made)

    parameters = [option for each in signature.parameters.values() for option in options_of(each)]
    vars(run)["__signature__"] = signature.replace(parameters=parameters)
    run.__annotations__ = {option.name: option.annotation for option in parameters}
    return run


def options_of(parameter: Parameter) -> Iterator[Parameter]:
    """Iterate over the parameters that stand for one: itself, or the fields of a group."""
    if not is_dataclass(parameter.annotation):
        yield parameter
        return
    for field in fields(parameter.annotation):
        yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
