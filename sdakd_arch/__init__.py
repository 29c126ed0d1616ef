"""What a network is: families of architectures, widths, weights files, feature taps, channel adapters, inference.

Importing the package registers the architectures of its ``*_arch.py`` modules with BasicSR.
"""

from sdakd.compat import import_basicsr

import_basicsr()

from sdakd_arch import adapter_arch, connector_arch, esrgan_arch  # noqa: E402
from sdakd_arch.gcfsr import gcfsr_arch  # noqa: E402

__all__ = ['adapter_arch', 'connector_arch', 'esrgan_arch', 'gcfsr_arch']
