# SPDX-License-Identifier: Apache-2.0
"""The Fast DDS profile for large images, which its default buffers drop without an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ament_index_python.packages import get_package_share_directory

VARIABLE = "FASTRTPS_DEFAULT_PROFILES_FILE"


def profile_for(environment: Mapping[str, str]) -> dict[str, str]:
    """The variable to add to a process' environment; none where the user has set a profile."""
    if VARIABLE in environment:
        return {}
    share = Path(get_package_share_directory("robobrain_ros"))
    return {VARIABLE: str(share / "config" / "fastdds_large_images.xml")}
