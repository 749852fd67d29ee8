# SPDX-License-Identifier: Apache-2.0
"""Everything that knows ROS messages: cameras, requests in, results out, executors."""
