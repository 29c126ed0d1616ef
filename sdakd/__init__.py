"""SDAKD for BasicSR: distils super-resolution GANs into narrow students, as a plugin of BasicSR."""

from sdakd.version import VERSION

__version__ = VERSION
