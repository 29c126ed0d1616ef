"""A checkpoint's manifest: what its files are, so that a torn or altered set is not taken for a whole one.

``training_states/<iteration>.json`` is written before the training state, which comes last: where there is a state, all
that belongs to it was there. Checkpoints of version 0.1.0 have no manifest and are taken as they are.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from sdakd.compat import UserError, replacing

BLOCK = 1 << 20  # bytes that are hashed at a time


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


class Manifest:
    """The manifest of one checkpoint.

    Args:
        root: The folder of the experiment.
        iteration: Of the checkpoint.

    Attributes:
        files: The SHA-256 of every file by its path in the folder; a file that a validation writes anew has two, of
            which either is right.
        seed: ``manual_seed`` of the run; None where it was not kept.
    """

    def __init__(self, root: str | Path, iteration: int) -> None:
        self.root, self.iteration = Path(root), iteration
        self.files: dict[str, list[str]] = {}
        self.seed: int | None = None

    @property
    def path(self) -> Path:
        return self.root / 'training_states' / f'{self.iteration}.json'

    def name(self, file: str | Path) -> str:
        """How a file is called in the manifest."""
        return Path(file).relative_to(self.root).as_posix()

    def read(self) -> Manifest:
        """Reads what was written.

        Raises:
            UserError: There is a file, and it is no manifest.
        """
        if self.path.is_file():
            try:
                content = json.loads(self.path.read_text(encoding='utf-8'))
                self.files = {str(name): [*map(str, sums)] for name, sums in content['files'].items()}
                self.seed = content['manual_seed']
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                raise UserError(str(self.path), 'it is damaged.') from None
        return self

    def add(self, file: str | Path, written: str | Path | None = None) -> None:
        """Takes up a file, beside what it was before.

        Args:
            file: Its name.
            written: Where its new content lies until it takes that name: then the manifest is written at once.
        """
        before = self.files.get(self.name(file), [])[-1:]
        self.files[self.name(file)] = [*before, sha256(written or file)]
        if written is not None:
            self.write()

    def write(self) -> None:
        """Writes it whole."""
        content = {'iteration': self.iteration, 'manual_seed': self.seed, 'files': self.files}
        with replacing(self.path) as file:
            file.write(json.dumps(content, indent=1).encode())

    def fault(self) -> str | None:
        """What is wrong with the files, as a sentence without its end; None: nothing, or nothing is known."""
        for name, sums in self.files.items():
            file = self.root / name
            if not file.is_file():
                if is_pool(file):  # the older checkpoints have theirs no more
                    continue
                return f'{file} is missing'
            if sha256(file) not in sums:
                return f'{file} is not what the run has written: its SHA-256 differs'
        return None


def is_pool(file: Path) -> bool:
    """Whether a file holds a pool of pairs, without which a run can go on."""
    return '_pool' in file.name


def check_whole(state: str | Path) -> None:
    """Checks the checkpoint of a training state.

    Raises:
        UserError: It is torn or was altered; with what to do.
    """
    manifest = _of(state)
    if fault := manifest.read().fault():
        raise UserError(
            'path:resume_state', f'{fault}; resume from another state, or by --auto_resume from the newest whole one.'
        )


def newest_whole(states: Iterable[Path]) -> Path | None:
    """The newest training state whose checkpoint is whole; others are named in a warning.

    Raises:
        UserError: There are states, and none is whole.
    """
    faults = []
    for state in sorted(states, key=lambda path: int(path.stem), reverse=True):
        fault = fault_of(state)
        if fault is None:
            if faults:
                logging.getLogger('basicsr').warning(f'{"; ".join(faults)}. The run goes on from {state} instead.')
            return state
        faults.append(f'the checkpoint of iteration {int(state.stem):,d} is no whole one ({fault})')
    if faults:
        raise UserError(
            '--auto_resume', f'{"; ".join(faults)}; bring the files back, or leave the flag out to begin anew.'
        )
    return None


def newest_common(folders: Mapping[str, Path]) -> dict[str, str]:
    """The newest whole training states of several students that are of one iteration; empty where there are none yet.

    A run that is killed while it saves leaves some students with a checkpoint that others lack.

    Args:
        folders: Of the training states, by student.

    Raises:
        UserError: There are states, and none of one iteration.
    """
    states = {
        name: {int(path.stem): path for path in folder.glob('*.state') if path.stem.isdigit()}
        for name, folder in folders.items()
    }
    common = set.intersection(*(set(found) for found in states.values()))
    faults = []
    for iteration in sorted(common, reverse=True):
        found = {name: each[iteration] for name, each in states.items()}
        bad = [fault for state in found.values() if (fault := fault_of(state)) is not None]
        if not bad:
            if faults:
                said = f'{"; ".join(faults)}. The run goes on from {iteration:,d} instead.'
                logging.getLogger('basicsr').warning(said)
            return {name: str(state) for name, state in found.items()}
        faults.append(f'the checkpoint of iteration {iteration:,d} is no whole one ({bad[0]})')
    if not faults and len(set().union(*states.values())) <= 1:  # killed while it saved for the first time
        return {}
    there = ', '.join(
        f'{name} has {", ".join(f"{each:,d}" for each in sorted(found)) or "none"}' for name, found in states.items()
    )
    raise UserError(
        '--auto_resume',
        f'{"; ".join([*faults, f"the students have no whole checkpoint of one iteration ({there})"])}; bring the files '
        'back, take a student that has none out of the option file, or leave the flag out to begin anew.',
    )


def fault_of(state: Path) -> str | None:
    """What is wrong with the checkpoint of a training state, as a sentence without its end; None: nothing."""
    try:
        return _of(state).read().fault()
    except UserError as error:
        return str(error).rstrip('.')


def seed_of(state: str | Path) -> int | None:
    """``manual_seed`` of the run that has written a training state; None where it was not kept."""
    return _of(state).read().seed


def _of(state: str | Path) -> Manifest:
    state = Path(state)
    return Manifest(state.parents[1], int(state.stem) if state.stem.isdigit() else -1)
