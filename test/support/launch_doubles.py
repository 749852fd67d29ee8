# SPDX-License-Identifier: Apache-2.0
"""As much of `launch` and `launch_ros` as our launch files use, for machines without them.

The signatures are those of Jazzy's (launch 3.4, launch_ros 0.26), narrowed to what we use: a name
that is not here raises TypeError. `test_launch_files.py` compares them with the real ones wherever
those are installed. No process is started: a test asks each Node what it was given.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import yaml


class LaunchContext:
    """The arguments' values while a launch file is carried out."""

    def __init__(self) -> None:
        self.launch_configurations: dict[str, str] = {}
        self.environment = os.environ


def perform_substitutions(context: LaunchContext, subs: list) -> str:
    return "".join(part.perform(context) for part in subs)


def normalize_to_list_of_substitutions(subs: Any) -> list:
    if isinstance(subs, str):
        return [TextSubstitution(text=subs)]
    if hasattr(subs, "perform"):
        return [subs]
    return [part for sub in subs for part in normalize_to_list_of_substitutions(sub)]


def perform(context: LaunchContext, value: Any) -> str:
    return perform_substitutions(context, normalize_to_list_of_substitutions(value))


class TextSubstitution:
    def __init__(self, *, text: str) -> None:
        self.text = text

    def perform(self, context: LaunchContext) -> str:
        return self.text


class LaunchConfiguration:
    def __init__(self, variable_name: str) -> None:
        self.name = variable_name

    def perform(self, context: LaunchContext) -> str:
        return context.launch_configurations[self.name]


class IfCondition:
    def __init__(self, predicate_expression: Any) -> None:
        self.predicate = predicate_expression

    def evaluate(self, context: LaunchContext) -> bool:
        text = perform(context, self.predicate).lower()
        return {"true": True, "1": True, "false": False, "0": False}[text]


class Action:
    def __init__(self, *, condition: IfCondition | None = None) -> None:
        self.condition = condition

    def visit(self, context: LaunchContext) -> list | None:
        if self.condition is None or self.condition.evaluate(context):
            return self.execute(context)
        return None

    def execute(self, context: LaunchContext) -> list | None:
        raise AssertionError(f"{type(self).__name__} would start a process")


class LaunchDescription:
    def __init__(self, initial_entities: Iterable | None = None) -> None:
        self.entities = list(initial_entities or ())

    def visit(self, context: LaunchContext) -> list:
        return self.entities


class DeclareLaunchArgument(Action):
    def __init__(
        self,
        name: str,
        *,
        default_value: Any = None,
        description: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name, self.default_value, self.description = name, default_value, description

    def execute(self, context: LaunchContext) -> None:
        if self.name not in context.launch_configurations:
            context.launch_configurations[self.name] = perform(context, self.default_value)


class OpaqueFunction(Action):
    def __init__(self, *, function: Callable, **left_over_kwargs: Any) -> None:
        super().__init__(**left_over_kwargs)
        self.function = function

    def execute(self, context: LaunchContext) -> list | None:
        return self.function(context)


class PythonLaunchDescriptionSource:
    def __init__(self, launch_file_path: Any) -> None:
        self.path = launch_file_path


class IncludeLaunchDescription(Action):
    def __init__(
        self,
        launch_description_source: PythonLaunchDescriptionSource,
        *,
        launch_arguments: Iterable[tuple[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = launch_description_source
        self.arguments = tuple(launch_arguments or ())

    def execute(self, context: LaunchContext) -> list:
        for name, value in self.arguments:
            context.launch_configurations[name] = perform(context, value)
        file = runpy.run_path(perform(context, self.source.path))
        return [file["generate_launch_description"]()]


class ExecuteLocal(Action):
    def __init__(
        self,
        *,
        output: str = "log",
        respawn: Any = False,
        respawn_delay: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)


class ExecuteProcess(ExecuteLocal):
    def __init__(self, *, additional_env: dict | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Node(ExecuteProcess):
    def __init__(
        self,
        *,
        executable: Any,
        package: Any = None,
        name: Any = None,
        namespace: Any = None,
        parameters: list | None = None,
        ros_arguments: Iterable | None = None,
        arguments: Iterable | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)


class LifecycleNode(Node):
    def __init__(self, *, name: Any, namespace: Any, **kwargs: Any) -> None:
        super().__init__(name=name, namespace=namespace, **kwargs)


class ParameterValue:
    def __init__(self, value: Any, *, value_type: type | None = None) -> None:
        self.value, self.value_type = value, value_type

    def evaluate(self, context: LaunchContext) -> Any:
        text = perform(context, self.value)
        value = text if self.value_type is str else yaml.safe_load(text)
        if self.value_type is not None and type(value) is not self.value_type:
            raise ValueError(f"{text!r} is no {self.value_type.__name__}")
        return value


MODULES = {
    "launch": (LaunchContext, LaunchDescription),
    "launch.actions": (DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction),
    "launch.conditions": (IfCondition,),
    "launch.launch_description_sources": (PythonLaunchDescriptionSource,),
    "launch.substitutions": (LaunchConfiguration, TextSubstitution),
    "launch.utilities": (normalize_to_list_of_substitutions, perform_substitutions),
    "launch_ros": (),
    "launch_ros.actions": (LifecycleNode, Node),
    "launch_ros.parameter_descriptions": (ParameterValue,),
}


@contextmanager
def in_place() -> Iterator[None]:
    """Let `import launch` and `import launch_ros` find what is here."""
    modules = {}
    for name, contents in MODULES.items():
        modules[name] = ModuleType(name)
        for content in contents:
            setattr(modules[name], content.__name__, content)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, modules[name])
    with mock.patch.dict(sys.modules, modules):
        yield
