"""Sheets of pictures: rows of images with a label above each, as one PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP, LABEL, TEXT = 8, 26, 16  # pixels: between cells, above each, and of its letters

Cell = tuple[str, Image.Image]


def image_of(pixels: np.ndarray) -> Image.Image:
    """An image for a cell of ``(H, W, 3)``, uint8, BGR."""
    return Image.fromarray(np.ascontiguousarray(pixels[..., ::-1]))


def enlarged(pixels: np.ndarray, width: int, height: int) -> Image.Image:
    """An image for a cell in which every pixel is repeated, so that nothing is added to it."""
    return image_of(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_NEAREST))


def sheet(rows: Sequence[Sequence[Cell]]) -> bytes:
    """Rows one below the other on white, as PNG; cells of equal sizes stand in columns."""
    font = ImageFont.load_default(size=TEXT)
    widths = [sum(cell.width + GAP for _, cell in row) for row in rows]
    heights = [max(cell.height for _, cell in row) + LABEL + GAP for row in rows]
    whole = Image.new('RGB', (max(widths), sum(heights)), 'white')
    draw, top = ImageDraw.Draw(whole), 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for text, cell in row:
            whole.paste(cell, (left, top + LABEL))
            draw.text((left, top + 3), text, fill='black', font=font)
            left += cell.width + GAP
        top += height
    data = io.BytesIO()
    whole.save(data, 'PNG')
    return data.getvalue()
