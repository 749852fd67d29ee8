# SPDX-License-Identifier: Apache-2.0
"""The SROS2 policy against the real node, what its log tells, and what PyPI's Fast DDS can't do."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from sensor_msgs.msg import Image
from support.polling import until

from robobrain_ros.core.errors import ErrorCode
from robobrain_ros.sim.processes import environment

POLICY = Path(__file__).resolve().parents[2] / "config" / "sros2_policy.xml"
ACTION_SERVICES = ("send_goal", "cancel_goal", "get_result")
ACTION_TOPICS = ("feedback", "status")


def profile(node):
    """What the policy lets a node do: sets of full names by the graph's words."""
    (found,) = ET.parse(POLICY).getroot().findall(f".//profile[@node='{node}']")

    def names(element, attribute):
        path = f"{element}s[@{attribute}='ALLOW']/{element}"
        # As sros2 expands them.
        return {one.text.replace("~", f"{found.get('ns')}{node}") for one in found.findall(path)}

    actions = names("action", "execute")
    return {
        "publisher": names("topic", "publish")
        | {f"{name}/_action/{part}" for name in actions for part in ACTION_TOPICS},
        "subscriber": names("topic", "subscribe"),
        "service": names("service", "reply")
        | {f"{name}/_action/{part}" for name in actions for part in ACTION_SERVICES},
        "client": names("service", "request"),
    }


@pytest.mark.parametrize("node", ["robobrain", "robobrain_cameras"])
@pytest.mark.parametrize("kind", ["publisher", "subscriber", "service", "client"])
def test_the_policy_allows_what_the_node_does_and_nothing_else(brain, own_node, node, kind):
    look = getattr(own_node, f"get_{kind}_names_and_types_by_node")
    allowed = profile(node)[kind]

    def found() -> set[str]:
        return {name for name, _ in look(node, "/")}

    until(lambda: allowed <= found(), 20.0)  # DDS discovers them one by one
    assert found() == allowed


def test_a_planner_may_ask_and_not_command():
    node = profile("robobrain")
    found = profile("planner")
    assert found["client"] < node["service"]
    assert not {name for name in found["client"] if "state" in name or "parameter" in name}
    (planner,) = ET.parse(POLICY).getroot().findall(".//profile[@node='planner']")
    assert [one.text for one in planner.findall("actions[@call='ALLOW']/action")] == [
        "/robobrain/infer"
    ]


def test_the_policy_is_of_the_version_that_sros2_reads():
    root = ET.parse(POLICY).getroot()
    assert (root.tag, root.get("version")) == ("policy", "0.2.0")
    allowed = {"topics": {"publish", "subscribe"}, "services": {"reply", "request"}}
    allowed["actions"] = {"execute", "call"}
    for found in root.iter("profile"):
        for rules in found:
            assert set(rules.attrib) <= allowed[rules.tag]
            assert set(rules.attrib.values()) == {"ALLOW"}
            assert all("*" not in one.text for one in rules), "a wildcard is no least privilege"


def test_prompts_and_answers_are_not_logged(brain):
    """Neither of a request that is answered nor of one that is refused."""
    before = brain.log()
    assert "Active" in before
    image = Image(height=48, width=64, encoding="rgb8", step=192, data=bytes(48 * 192))
    asked = "is there a heliotrope mug?"
    answered = brain.ask(asked, image=image)
    assert answered.error_code in (ErrorCode.NONE, ErrorCode.EMPTY_ANSWER), answered.error_msg
    assert answered.timing.total > 0
    assert not brain.point_to(asked).success
    log = brain.log()
    assert "NO_IMAGE" in log.removeprefix(before)
    assert "heliotrope" not in log


def test_this_fast_dds_has_no_security_plugins(ros, tmp_path):
    """Why no enclave is tried here: where this fails, a test in an enclave can take its place."""
    enclave = tmp_path / "enclaves" / "robobrain"
    enclave.mkdir(parents=True)
    names = ("identity_ca.cert.pem", "cert.pem", "key.pem", "permissions_ca.cert.pem")
    for name in (*names, "governance.p7s", "permissions.p7s"):
        (enclave / name).write_text("")
    secure = {
        **environment(),
        "ROS_SECURITY_ENABLE": "true",
        "ROS_SECURITY_STRATEGY": "Enforce",
        "ROS_SECURITY_KEYSTORE": str(tmp_path),
        "ROS_SECURITY_ENCLAVE_OVERRIDE": "/robobrain",
    }
    code = "import rclpy; rclpy.init(); rclpy.create_node('secret')"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | secure, capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "doesn't have the security libraries" in run.stderr
