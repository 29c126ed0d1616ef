"""GCFSR: generator, discriminator and their layers."""
