# SPDX-License-Identifier: Apache-2.0
"""Appearance of answers on images and in RViz."""
