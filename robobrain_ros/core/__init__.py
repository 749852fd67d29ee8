# SPDX-License-Identifier: Apache-2.0
"""Tasks, prompts, answers and one request's way through them. Pure: no ROS, no torch."""
