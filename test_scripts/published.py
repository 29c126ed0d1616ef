"""What is known of the paper's numbers (paper.yml), for the tables."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Literal

from common import fraction, read_config
from msgspec import Struct, field

FILE = Path(__file__).with_name('paper.yml')
EMPTY = (
    'Empty cells under "Paper": the number could not be read (test_scripts/paper.yml holds all that could). Other '
    'empty cells: not measured.'
)


class Number(Struct, forbid_unknown_fields=True):
    """One cell of the paper."""

    table: Literal['fid', 'ablation', 'cost']
    metric: str
    value: str
    source: str
    generator: str = ''
    method: str = ''
    width: str | int | float = ''
    scale: int | None = None


class Paper(Struct, forbid_unknown_fields=True):
    """paper.yml."""

    numbers: list[Number] = field(default_factory=list)


class Published:
    """The paper's numbers for one table.

    Args:
        table: fid, ablation or cost.
    """

    def __init__(self, table: str) -> None:
        self.table = table
        self.numbers = [number for number in read_config(str(FILE), Paper).numbers if number.table == table]

    def cell(self, metric: str, generator: str, width: Fraction, method: str = '', scale: int | None = None) -> str:
        """The paper's text for a cell; empty where it is not known."""
        for one in self.numbers:
            same = (one.metric, one.generator, one.method, one.scale) == (metric, generator, method, scale)
            if same and one.width != '' and fraction(one.width, f'{FILE.name}: width') == width:
                return one.value
        return ''

    def notes(self) -> list[str]:
        """Why cells are empty, and the numbers that belong to no cell, with their sources."""
        loose = [one for one in self.numbers if not one.generator or one.width == '']
        texts = [
            f'Paper, {one.metric}: {one.value} (of which network is not known; read in {one.source}).' for one in loose
        ]
        return [EMPTY, *texts]
