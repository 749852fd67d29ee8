#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
set -e
. /opt/ros/jazzy/setup.bash
. /venv/bin/activate
. /ws/install/setup.bash
exec "$@"
