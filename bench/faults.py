# SPDX-License-Identifier: Apache-2.0
"""Faults of a robot, injected at random; for bench/soak.py."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter

from robobrain_ros.client import BrainClient
from robobrain_ros.sim.processes import NodeProcess

GAP_S = (1.0, 8.0)  # between faults, from and to
SIZES = ((640, 480), (320, 240), (1280, 720))
_PARAMETERS = {
    "request_timeout": (1.0, 10.0, 60.0),
    "max_image_age": (0.2, 1.0, 5.0),
    "sync_tolerance": (0.005, 0.05),
    "path_height": ("interpolate", "surface", "no such height"),
}


class Faults:
    """Owns the camera's process, and troubles it and the node now and then."""

    def __init__(
        self,
        client: BrainClient,
        rng: random.Random,
        log: Path,
        gap_s: tuple[float, float] = GAP_S,
    ) -> None:
        self.count: Counter[str] = Counter()
        self._client, self._rng = client, rng
        self._log = open(log, "wb")  # noqa: SIM115
        self._camera = self._new_camera()
        self._kinds = (self.stall, self.restart, self.deactivate, self.unload, self.change)
        self._to_come: list[Callable[[], None]] = []
        self._gap_s = gap_s
        self._next = time.monotonic() + gap_s[1]

    def maybe(self) -> None:
        """Do the next one, if it is time."""
        if time.monotonic() < self._next:
            return
        if not self._to_come:  # each kind once in a while, in any order
            self._to_come = self._rng.sample(self._kinds, len(self._kinds))
        fault = self._to_come.pop()
        self.count[fault.__name__] += 1
        fault()
        self._next = time.monotonic() + self._rng.uniform(*self._gap_s)

    def close(self) -> None:
        """End the camera."""
        self._camera.end()
        self._log.close()

    def stall(self) -> None:
        """The camera stops for a while: its images grow old."""
        self._camera.process.send_signal(signal.SIGSTOP)
        time.sleep(self._rng.uniform(0.2, 3.0))
        self._camera.process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """The camera dies, and comes back with another resolution and another scene."""
        self._camera.end(signal.SIGKILL)
        self._camera = self._new_camera()

    def deactivate(self) -> None:
        """The node is deactivated under its requests, and activated again."""
        self._client.deactivate()
        time.sleep(self._rng.uniform(0, 1.0))
        self._client.activate()

    def unload(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """The model is unloaded under its requests, and loaded again."""
        self._client.deactivate()
        self._client.cleanup()
        meanwhile()
        self._client.configure()
        self._client.activate()

    def change(self) -> None:
        """A parameter changes, perhaps to what it can't be."""
        name = self._rng.choice(list(_PARAMETERS))
        value = Parameter(name, value=self._rng.choice(_PARAMETERS[name])).to_parameter_msg()
        request = SetParameters.Request(parameters=[value])
        self._client.call(SetParameters, "robobrain/set_parameters", request, 60.0)

    def _new_camera(self) -> NodeProcess:
        width, height = self._rng.choice(SIZES)
        seed = 2_000_000 + self._rng.randrange(100)
        parameters = {"width": width, "height": height, "seed": seed, "rate": 30.0}
        return NodeProcess("robobrain_ros.sim.camera_node", parameters, output=self._log)
