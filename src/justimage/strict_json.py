"""Read JSON strictly as a dataclass: every name and type is checked, and the first mistake is one line."""

import difflib
import reprlib
import types
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

PLAIN = (str, int, bool, types.NoneType)
"""Types whose values are taken as they are: True is not an int, and 1 is not a bool."""


def parse(values: Any, kind: Any, place: str) -> Any:
    """A value of type `kind` from its JSON; ValueError names the entry below `place` that is wrong.

    kind: a dataclass, a plain type, float, a Literal, or a union, tuple or dict[str, ...] of these. Arrays become tuples.
    Entries whose field has a default may be left out; unknown ones are refused.
    """
    if kind in PLAIN and type(values) is kind:
        return values
    if is_dataclass(kind):
        return parse_dataclass(values, kind, place)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        for option in get_args(kind):
            with suppress(ValueError):
                return parse(values, option, place)
    elif origin is tuple and isinstance(values, list | tuple):
        inner = get_args(kind)
        if inner[-1] is ... and inner[0] in PLAIN and set(map(type, values)) <= {inner[0]}:
            return tuple(values)
        inner = [inner[0]] * len(values) if inner[-1] is ... else inner
        if len(inner) == len(values):
            return tuple(parse(v, k, f"{place}[{i}]") for i, (v, k) in enumerate(zip(values, inner, strict=True)))
    elif origin is dict and isinstance(values, dict):
        return {name: parse(v, get_args(kind)[1], f"{place}.{reprlib.repr(name)}") for name, v in values.items()}
    elif origin is Literal and values in get_args(kind):
        return values
    elif kind is float and type(values) in (int, float):
        with suppress(OverflowError):
            return float(values)
    elif kind is Any:
        return values
    raise ValueError(f"{place} is {reprlib.repr(values)}, which is not allowed there")


def parse_dataclass(values: Any, kind: Any, place: str) -> Any:
    """A dataclass from a JSON object with its fields' names."""
    if not isinstance(values, dict):
        raise ValueError(f"{place} is {reprlib.repr(values)}; it must be an object")
    types_of, required = hints(kind)
    if name := next((name for name in values if name not in types_of), None):
        near = difflib.get_close_matches(name[:100], types_of, n=1)
        raise ValueError(f"{place} has an unknown entry {reprlib.repr(name)}" + (f"; perhaps {near[0]}" if near else ""))
    if missing := required - values.keys():
        raise ValueError(f"{place} lacks {', '.join(sorted(missing))}")
    return kind(**{name: parse(value, types_of[name], f"{place}.{name}") for name, value in values.items()})


@lru_cache
def hints(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """The type of each field of a dataclass, and the names of those without a default."""
    required = (f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)
    return get_type_hints(kind), frozenset(required)
