# SPDX-License-Identifier: Apache-2.0
"""The sink of the entities: a file, the open viewers, or both."""

from __future__ import annotations

import contextlib
import math
import threading
from pathlib import Path

import numpy as np
import rerun as rr

from robobrain_ros.view.archetypes import ROOT, Entity, nothing, styles
from robobrain_ros.view.frames import Eye
from robobrain_ros.view.layout import TIMELINE, blueprint

_FLUSH_S = 5.0  # a viewer that hangs must not keep the program from ending


class Recording:
    """A recording in rerun. Use as a context manager; `log` may be called from any thread."""

    def __init__(self, file: Path | None = None, server: str | None = None) -> None:
        """file: an .rrd to write. server: the URL of a rerun server to send to."""
        sinks = []
        if server is not None:
            sinks.append(rr.GrpcSink(server))
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            sinks.append(rr.FileSink(file))
        self._stream = rr.RecordingStream("robobrain_ros", send_properties=True)
        self._stream.set_log_tick_enabled(False)
        self._lock = threading.Lock()
        # What to log in the end, and when that is (ns), by path.
        self._drawn: dict[str, tuple[rr.AsComponents, float]] = {}
        self._stream.set_sinks(*sinks, default_blueprint=blueprint())
        for style in styles():
            self.log(style, 0)

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(TimeoutError, ValueError, RuntimeError):
            self._stream.flush(timeout_sec=_FLUSH_S)
        self._stream.disconnect()

    def show_in(self, frame: str, eye: Eye | None) -> None:
        """Show the 3D view in this frame of TF from now on, and at first from `eye`."""
        self._stream.send_blueprint(blueprint(frame, eye))
        # Whoever rewinds to before an entity's first appearance finds it in the frame of its path,
        # whose root must lie somewhere.
        root = rr.Transform3D(parent_frame=frame, child_frame="tf#/")
        self._stream.log(ROOT, root, static=True)

    def log(self, entity: Entity, stamp_ns: int, end_ns: int = 0) -> None:
        """Draw an entity from `stamp_ns` on, until there is another one at its path.

        end_ns: when `expire` removes it; 0 = never.
        """
        with self._lock:
            self._drawn[entity.path] = nothing(entity.drawn), end_ns or math.inf
        self._at(stamp_ns)
        self._stream.log(entity.path, entity.drawn, *entity.place, static=entity.static)

    def remove(self, path: str, stamp_ns: int) -> None:
        """Clear the entity at `path` and those below it from `stamp_ns` on."""
        with self._lock:
            gone = [one for one in self._drawn if f"{one}/".startswith(f"{path}/")]
            empty = {one: self._drawn.pop(one)[0] for one in gone}
        self._at(stamp_ns)
        for one, archetype in empty.items():
            self._stream.log(one, archetype)

    def expire(self, now_ns: int) -> None:
        """Remove entities whose lifetime is over."""
        with self._lock:
            over = [path for path, (_, end) in self._drawn.items() if end <= now_ns]
        for path in over:
            self.remove(path, now_ns)

    def _at(self, stamp_ns: int) -> None:
        # rerun keeps the time of each thread apart.
        self._stream.set_time(TIMELINE, timestamp=np.datetime64(stamp_ns, "ns"))
