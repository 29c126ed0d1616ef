"""What a network is: widths, weights files, feature taps, channel adapters, tiled inference.

Importing the package registers the architectures of its ``*_arch.py`` modules with BasicSR.
"""

import sdakd  # the ground floor makes BasicSR importable
from sdakd_arch import adapter_arch

__all__ = ['adapter_arch', 'sdakd']
