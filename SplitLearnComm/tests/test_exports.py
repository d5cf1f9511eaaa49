import importlib
import inspect

import pytest

PUBLIC = [
    "splitlearn_comm",
    "splitlearn_comm.client",
    "splitlearn_comm.codec",
    "splitlearn_comm.server",
    "splitlearn_comm.testing",
    "splitlearn_comm.tracing",
]


def exported() -> list[tuple[str, object]]:
    modules = [importlib.import_module(name) for name in PUBLIC]
    return [(f"{module.__name__}.{name}", getattr(module, name)) for module in modules for name in module.__all__]


def public_functions(cls: type) -> list[tuple[str, object]]:
    members = [(name, inspect.unwrap(getattr(value, "fget", None) or value)) for name, value in vars(cls).items()]
    return [(name, value) for name, value in members if inspect.isfunction(value) and not name.startswith("_")]


@pytest.mark.parametrize(("name", "thing"), exported(), ids=[name for name, _ in exported()])
def test_what_is_public_is_documented_and_typed(name: str, thing: object) -> None:
    if not inspect.isclass(thing):
        return
    assert inspect.getdoc(thing), f"{name} has no docstring"
    for method_name, method in public_functions(thing):
        assert inspect.getdoc(getattr(thing, method_name)), f"{name}.{method_name} has no docstring"
        signature = inspect.signature(method)  # type: ignore[arg-type]
        untyped = [
            p for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")
        ]
        assert not untyped, f"{name}.{method_name} has untyped parameters"
        assert signature.return_annotation is not signature.empty, f"{name}.{method_name} has no return type"


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_sorted_and_complete(name: str) -> None:
    module = importlib.import_module(name)
    assert list(module.__all__) == sorted(module.__all__, key=lambda name: (not name.isupper(), name))
    assert len(set(module.__all__)) == len(module.__all__)
