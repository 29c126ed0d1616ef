"""Networks made ready for use: accelerated, in tiles, with their channels grouped anew."""
