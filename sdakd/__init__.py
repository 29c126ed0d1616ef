"""SDAKD for BasicSR: distils super-resolution GANs into narrow students, as a plugin of BasicSR.

Importing this package makes BasicSR importable on a current torch and torchvision, and does nothing else.
"""

from sdakd.compat import prepare_imports
from sdakd.version import VERSION

__version__ = VERSION

prepare_imports()
