# SPDX-License-Identifier: Apache-2.0
"""Messages made from recorded definitions, for interface packages that are not installed here.

They take the recorded fields with values of the recorded types, and nothing else. Fields of types
that are installed (geometry_msgs, …) hold the real ones.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

_BASIC = {"bool": bool, "string": str, "float64": float, "int32": int, "uint8": int}


class RecordedMessage:
    """kinds: the type of each field, as in a .msg file. A constant is a class attribute."""

    kinds: dict[str, str]
    package: RecordedPackage

    def __init__(self, **values: Any) -> None:
        for name, kind in self.kinds.items():
            object.__setattr__(self, name, self.package.default(kind))
        for name, value in values.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.kinds:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}")
        object.__setattr__(self, name, value)
        self.package.check(value, self.kinds[name], f"{type(self).__name__}.{name}")

    def check(self) -> None:
        """Raise TypeError unless every field's value is of its type, down to the last number."""
        for name, kind in self.kinds.items():
            self.package.check(getattr(self, name), kind, f"{type(self).__name__}.{name}")


class Unrecorded:
    """A name that may be imported; no message of it can be made."""

    Request = Response = Goal = Result = Feedback = None

    def __init__(self, **_: Any) -> None:
        raise TypeError(f"{type(self).__name__} is not recorded")


class RecordedPackage:
    """One package's messages, services and actions."""

    def __init__(self, name: str, definitions: dict[str, dict]) -> None:
        self.name = name
        self._types: dict[str, type] = {}
        for path, members in definitions.items():
            if path == "source":
                continue
            constants = {key: value for key, value in members.items() if isinstance(value, int)}
            kinds = {key: value for key, value in members.items() if key not in constants}
            body = {"kinds": kinds, "package": self, **constants}
            self._types[path] = type(path.split("/")[1], (RecordedMessage,), body)

    def modules(self) -> dict[str, ModuleType]:
        """The package and its msg, srv and action by their names, as `sys.modules` has them."""
        modules = {self.name: ModuleType(self.name)}
        for part in ("msg", "srv", "action"):
            module = modules[f"{self.name}.{part}"] = ModuleType(f"{self.name}.{part}")
            module.__getattr__ = lambda name, part=part: self.interface(part, name)
        return modules

    def interface(self, part: str, name: str) -> type:
        """What `from <package>.<part> import <name>` imports."""
        if name.startswith("__"):
            raise AttributeError(name)
        path = f"{part}/{name}"
        if path not in self._types:
            pieces = {
                key.removeprefix(f"{path}_"): kind
                for key, kind in self._types.items()
                if key.startswith(f"{path}_")
            }
            base = object if pieces else Unrecorded
            self._types[path] = type(name, (base,), pieces)
        return self._types[path]

    def class_of(self, kind: str) -> type:
        if kind in _BASIC:
            return _BASIC[kind]
        package, name = kind.split("/")
        if package == self.name:
            return self.interface("msg", name)
        return getattr(importlib.import_module(f"{package}.msg"), name)

    def default(self, kind: str) -> Any:
        if kind.endswith("[]"):
            return []
        of = self.class_of(kind)
        return None if issubclass(of, Unrecorded) else of()

    def check(self, value: Any, kind: str, field: str) -> None:
        if kind.endswith("[]"):
            if not isinstance(value, list):
                raise TypeError(f"{field} takes a list, not {value!r}")
            for element in value:
                self.check(element, kind.removesuffix("[]"), field)
            return
        of = self.class_of(kind)
        if value is None and issubclass(of, Unrecorded):
            return
        if not isinstance(value, of) or (of is int and isinstance(value, bool)):
            raise TypeError(f"{field} takes {kind}, not {value!r}")
        if isinstance(value, RecordedMessage):
            value.check()
        elif of not in _BASIC.values():
            check_installed(value)


def check_installed(message: Any) -> None:
    """Raise TypeError unless the fields of an installed type hold what they should.

    rosidl's own assertions, which are off by default in Jazzy.
    """
    values = {name: getattr(message, name) for name in message.get_fields_and_field_types()}
    try:
        type(message)(check_fields=True, **values)
    except AssertionError as error:
        raise TypeError(f"{type(message).__name__}: {error}") from error
    for value in values.values():
        for element in value if isinstance(value, list) else [value]:
            if hasattr(element, "get_fields_and_field_types"):
                check_installed(element)


def recorded_packages(file: str = "planners.yaml") -> dict[str, RecordedPackage]:
    """By name, from a file beside this one."""
    content = yaml.safe_load((Path(__file__).parent / file).read_text())
    return {name: RecordedPackage(name, members) for name, members in content.items()}
