# SPDX-License-Identifier: Apache-2.0
"""What the launch files start, and with what, without starting it.

They are carried out by the real `launch` where it is installed, and by doubles of it everywhere,
since neither PyPI nor our CI has it. `test_launch.py` starts them for real.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import runpy
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ament_index_python.packages import get_package_prefix, get_package_share_directory
from support import launch_doubles

from robobrain_ros.ros import parameters
from robobrain_ros.sim import camera_node

SHARE = Path(get_package_share_directory("robobrain_ros"))
# Of launch, the folder of our launch files is enough to be found.
HAS_LAUNCH = importlib.util.find_spec("launch_ros") is not None
needs_launch = pytest.mark.skipif(not HAS_LAUNCH, reason="launch and launch_ros are not installed")
PROFILE = "FASTRTPS_DEFAULT_PROFILES_FILE"
ARGUMENTS = {
    "brain": "namespace params_file model quantization camera autostart use_sim_time log_level "
    "use_respawn use_rviz",
    "demo": "namespace params_file camera use_rviz seed",
}


@pytest.fixture(params=["doubles", pytest.param("real", marks=needs_launch)])
def launching(request, monkeypatch):
    """Carries out a launch file: its name and arguments -> its nodes and declared arguments."""
    with ExitStack() as stack:
        if request.param == "doubles":
            stack.enter_context(launch_doubles.in_place())
        actions = importlib.import_module("launch_ros.actions")
        for name in ("Node", "LifecycleNode"):
            monkeypatch.setattr(actions, name, recording(getattr(actions, name)))
        yield carry_out


def recording(base: type) -> type:
    """The class of nodes `base`, which also keeps what it was given."""

    class Recording(base):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.given = given

    return Recording


def carry_out(file: str, **arguments: str) -> SimpleNamespace:
    launch = importlib.import_module("launch")
    importlib.import_module("launch.actions")
    context = launch.LaunchContext()
    context.launch_configurations.update(arguments)
    result = SimpleNamespace(nodes={}, arguments={})
    description = runpy.run_path(str(SHARE / "launch" / f"{file}.launch.py"))
    visit([description["generate_launch_description"]()], context, result)
    return result


def visit(entities: list, context: Any, result: SimpleNamespace) -> None:
    declaration = importlib.import_module("launch.actions").DeclareLaunchArgument
    for entity in entities:
        if hasattr(entity, "given"):
            if entity.condition is None or entity.condition.evaluate(context):
                node = started(entity.given, context)
                result.nodes[node.executable] = node
            continue
        if isinstance(entity, declaration):
            result.arguments.setdefault(entity.name, entity.description)
        visit(entity.visit(context) or [], context, result)


def started(given: dict[str, Any], context: Any) -> SimpleNamespace:
    """What a Node was given, with the arguments' values in place."""
    utilities = importlib.import_module("launch.utilities")

    def text(value: Any) -> str:
        return utilities.perform_substitutions(
            context, utilities.normalize_to_list_of_substitutions(value)
        )

    def value_of(value: Any) -> Any:
        return value.evaluate(context) if hasattr(value, "evaluate") else value

    node = SimpleNamespace(files=[], parameters={}, environment=given.get("additional_env", {}))
    for name in ("package", "executable", "name", "namespace", "respawn"):
        setattr(node, name, text(given.get(name, "")))
    for name in ("arguments", "ros_arguments"):
        setattr(node, name, [text(value) for value in given.get(name, ())])
    for entry in given.get("parameters", ()):
        if isinstance(entry, dict):
            node.parameters |= {name: value_of(value) for name, value in entry.items()}
        else:
            node.files.append(text(entry))
            node.parameters |= parameters_in(Path(node.files[-1]))
    return node


def parameters_in(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())["/**"]["robobrain"]["ros__parameters"]


@pytest.fixture
def params_file(tmp_path):
    """A user's own parameters."""
    values = {"model": "/models/mine", "quantization": "int8", "cameras": ["left", "right"]}
    content = {"/**": {"robobrain": {"ros__parameters": values | {"use_sim_time": True}}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "mine.yaml")


@pytest.mark.parametrize("file", ARGUMENTS)
def test_arguments_are_declared_and_described(launching, file):
    names = ARGUMENTS[file].split()
    declared = launching(file).arguments
    assert list(declared)[: len(names)] == names
    assert all(declared.values())


def test_the_demo_takes_every_argument_of_the_node(launching):
    declared = launching("demo").arguments
    assert declared.keys() >= {*ARGUMENTS["brain"].split(), "seed"}


@pytest.mark.parametrize("file", ARGUMENTS)
def test_what_is_started_is_installed(launching, file):
    result = launching(file, use_rviz="true")
    assert result.nodes.keys() == {"brain_node", "rviz2"} | (
        {"sim_camera"} if file == "demo" else set()
    )
    option, shown = result.nodes.pop("rviz2").arguments
    assert option == "-d" and Path(shown).is_file()
    for node in result.nodes.values():
        prefix = Path(get_package_prefix(node.package))
        assert (prefix / "lib" / node.package / node.executable).is_file()


@pytest.mark.parametrize("file", ARGUMENTS)
def test_parameters_are_the_nodes_own_and_of_their_types(launching, file):
    nodes = launching(
        file, model="nano", quantization="none", camera="wrist", use_sim_time="true"
    ).nodes
    specs = {"brain_node": parameters.SPECS, "sim_camera": camera_node._SPECS, "rviz2": ()}
    for executable, node in nodes.items():
        known = {spec.name: spec for spec in specs[executable]}
        for name, value in node.parameters.items():
            if name == "use_sim_time":
                assert value is True
                continue
            assert type(value) is type(known[name].default), name
            assert not known[name].choices or value in known[name].choices


def test_the_node_and_its_name(launching):
    node = launching("brain", namespace="arm", log_level="debug", use_respawn="true").nodes[
        "brain_node"
    ]
    assert (node.package, node.name, node.namespace) == ("robobrain_ros", "robobrain", "arm")
    assert node.ros_arguments == ["--log-level", "debug"]
    assert node.respawn == "true"
    assert launching("brain").nodes["brain_node"].respawn == "false"


def test_without_arguments_it_is_robobrain_and_starts_itself(launching):
    node = launching("brain").nodes["brain_node"]
    assert node.parameters == {"model": "BAAI/RoboBrain2.0-3B", "autostart": True}
    default = {spec.name: spec.default for spec in parameters.SPECS}
    assert default["quantization"] == "auto" and default["cameras"] == ["camera"]
    node = launching("brain", autostart="false").nodes["brain_node"]
    assert node.parameters["autostart"] is False


def test_a_parameter_file_counts_where_no_argument_is_given(launching, params_file):
    values = launching("brain", params_file=params_file).nodes["brain_node"].parameters
    assert values == parameters_in(Path(params_file)) | {"autostart": True}
    values = (
        launching(
            "brain",
            params_file=params_file,
            model="nano",
            quantization="nf4",
            camera="wrist",
            use_sim_time="false",
        )
        .nodes["brain_node"]
        .parameters
    )
    assert values == {
        "model": "nano",
        "quantization": "nf4",
        "cameras": ["wrist"],
        "use_sim_time": False,
        "autostart": True,
    }


@pytest.mark.parametrize("file", ARGUMENTS)
def test_a_users_fast_dds_profile_is_kept(launching, file, monkeypatch):
    monkeypatch.delenv(PROFILE, raising=False)
    for node in launching(file).nodes.values():
        assert Path(node.environment[PROFILE]).is_file()
    monkeypatch.setenv(PROFILE, "/etc/mine.xml")
    for node in launching(file).nodes.values():
        assert not node.environment


def test_the_demo_shows_the_camera_to_nano(launching):
    nodes = launching("demo", seed="7", camera="wrist", namespace="arm", use_rviz="false").nodes
    assert nodes.keys() == {"sim_camera", "brain_node"}
    assert nodes["sim_camera"].parameters == {"name": "wrist", "seed": 7}
    assert nodes["brain_node"].parameters["model"] == "nano"
    assert nodes["brain_node"].parameters["cameras"] == ["wrist"]
    assert {node.namespace for node in nodes.values()} == {"arm"}
    given = launching("demo", model="/models/mine").nodes["brain_node"].parameters
    assert given["model"] == "/models/mine"


@pytest.mark.parametrize("value", ["yes please", "3"])
def test_a_truth_value_is_checked(launching, value):
    with pytest.raises(Exception, match="bool"):
        launching("brain", autostart=value)


@needs_launch
@pytest.mark.parametrize("module", launch_doubles.MODULES)
def test_the_real_classes_take_all_that_the_doubles_take(module):
    for double in launch_doubles.MODULES[module]:
        real = getattr(importlib.import_module(module), double.__name__)
        if inspect.isclass(double):
            assert names(double) <= names(real), double.__name__
            required = inspect.signature(double).parameters.values()
            positional = [p.name for p in required if p.kind is p.POSITIONAL_OR_KEYWORD]
            assert list(inspect.signature(real).parameters)[: len(positional)] == positional


def names(kind: type) -> set[str]:
    """What its constructor takes, with what that hands on to the classes below."""
    return {
        parameter.name
        for base in kind.__mro__[:-1]
        if "__init__" in vars(base)
        for parameter in list(inspect.signature(base.__init__).parameters.values())[1:]
        if parameter.kind is not parameter.VAR_KEYWORD
    }
