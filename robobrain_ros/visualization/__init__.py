# SPDX-License-Identifier: Apache-2.0
"""What answers look like on an image."""
