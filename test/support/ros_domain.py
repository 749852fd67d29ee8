# SPDX-License-Identifier: Apache-2.0
"""A ROS domain for each test process, so that parallel runs and workers never hear each other."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

DOMAINS = range(101, 80, -1)
"""Above those of make's other targets; higher ones have ports that Linux gives to any client."""


def claim_domain() -> int:
    """Claim a ROS_DOMAIN_ID that no other test process of this machine has until this one ends."""
    for domain in DOMAINS:
        path = Path(tempfile.gettempdir(), f"robobrain_test_domain_{domain}.lock")
        try:
            # Held by the open file, whose descriptor no child process inherits, and never closed.
            fcntl.flock(os.open(path, os.O_CREAT | os.O_RDWR, 0o666), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # taken, or another user's
            continue
        return domain
    raise RuntimeError(
        f"All {len(DOMAINS)} ROS domains of the tests are taken: end another test run."
    )
