# SPDX-License-Identifier: Apache-2.0
"""Lifting of pixels to 3D: depth, lens models, surfaces. Used through tf_projection only."""
