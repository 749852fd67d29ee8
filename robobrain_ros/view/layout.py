# SPDX-License-Identifier: Apache-2.0
"""Initial layout of the viewer's window; users may change it there."""

from __future__ import annotations

import rerun.blueprint as rrb
from rerun.blueprint.encodings import TextLogColumn, TimelineColumn

from robobrain_ros.view.archetypes import (
    ANNOTATED,
    ANSWERS,
    CAMERA,
    CLOUD,
    HEALTH,
    LATENCY,
    LOG,
    TF,
)
from robobrain_ros.view.frames import Eye

TIMELINE = "ros_time"
"""The stamps of the messages: what was seen at one moment is shown together."""

LEGEND = rrb.PlotLegend(rrb.Corner2D.LeftTop)


def blueprint(frame: str = "", eye: Eye | None = None) -> rrb.Blueprint:
    """The images on the left, the 3D view in `frame` on the right, plots and the log below."""
    place = rrb.SpatialInformation(target_frame=frame) if frame else None
    controls = None
    if eye is not None:
        controls = rrb.EyeControls3D(position=eye.position, look_target=eye.target, eye_up=eye.up)
    space = rrb.Spatial3DView(
        origin="/",
        contents=[f"/{path}/**" for path in (CAMERA, CLOUD, ANSWERS, TF)],
        name=f"3D in {frame}" if frame else "3D",
        spatial_information=place,
        eye_controls=controls,
    )
    images = rrb.Tabs(
        rrb.Spatial2DView(origin=ANNOTATED, name="Answers"),
        rrb.Spatial2DView(
            origin=CAMERA, contents=[f"/{CAMERA}/**", f"/{ANSWERS}/**"], name="Camera"
        ),
    )
    plots = rrb.Tabs(
        rrb.TimeSeriesView(origin=LATENCY, name="Latency (ms)", plot_legend=LEGEND),
        rrb.TimeSeriesView(origin=HEALTH, name="Diagnostics", plot_legend=LEGEND),
    )
    columns = rrb.TextLogColumns(
        timeline_columns=[TimelineColumn(TIMELINE, visible=False)],
        text_log_columns=[TextLogColumn("LogLevel"), TextLogColumn("Body")],
    )
    log = rrb.TextLogView(origin=LOG, name="Log", columns=columns)
    return rrb.Blueprint(
        rrb.Vertical(
            rrb.Horizontal(images, space, column_shares=[2, 3]),
            rrb.Horizontal(plots, log, column_shares=[3, 2]),
            row_shares=[5, 2],
        ),
        rrb.BlueprintPanel(state="hidden"),
        rrb.SelectionPanel(state="hidden"),
        rrb.TimePanel(state="collapsed", timeline=TIMELINE, play_state="following"),
    )
