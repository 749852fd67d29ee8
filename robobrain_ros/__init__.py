# SPDX-License-Identifier: Apache-2.0
"""Eyes for words: a camera image and a sentence become pixels and 3D poses."""

from pkgutil import extend_path

# The generated msg, srv and action modules lie beside an installed copy of this package. Started
# from the repository root (python -m, pytest) Python finds this directory first: the package then
# spans both.
__path__ = extend_path(__path__, __name__)
