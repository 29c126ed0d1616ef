"""`sdakd publish`: a model, its card and its pictures onto the Hugging Face Hub, in one commit."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import yaml

from sdakd import __version__, compat, stops
from sdakd.commands.card import README, card, check_repo
from sdakd.commands.interface import Flags, Outcome, one_of
from sdakd.compat import UserError, no_file, one_line
from sdakd.files.named import model_files
from sdakd.progress import say

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUBS = ('hf',)
# of Markdown and of HTML, what a card shows
PICTURES = re.compile(r'!\[[^\]]*\]\(\s*(?:<([^>]+)>|([^)\s]+))|<img\s[^>]*?\bsrc\s*=\s*["\']([^"\']+)', re.IGNORECASE)
NO_WEIGHTS = ('.param', '.json')  # endings of files whose SHA-256 tells no model: ncnn's graphs are all alike
TOKENS = 'https://huggingface.co/settings/tokens'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = Flags(parser, publish)
    add('-m', '--model', dest='models', nargs='+', metavar='FILE', help='the model, and its exports')
    add('--to', choices=HUBS, help='where: the Hugging Face Hub (default: {default})')
    add('--repo', metavar='USER/NAME', help="the repository (default: the model's name, of whom the token is)")
    card_of = 'folder that `sdakd card` has written (default: one is made of the first file)'
    add('--card', metavar='FOLDER', help=card_of)
    add('--private', action='store_true', help='a new repository is seen by nobody else')
    add('--dry_run', '--dry-run', dest='dry_run', action='store_true', help='check all and list what would go; nothing '
        'is sent')  # fmt: skip


@dataclass
class Published(Outcome):
    """What was sent.

    Args:
        repo: ``user/name``.
        files: Their bytes, by their names there.
        changed: Of each file: ``new``, ``replaced`` or ``the same``; empty where nothing was sent.
        address: Of the commit; None where nothing was sent or all was the same.
        notes: For people.
    """

    repo: str
    files: dict[str, int]
    changed: dict[str, str] = field(default_factory=dict)
    address: str | None = None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f'{name}: {size:,d} bytes, {self.changed.get(name, "would go")}' for name, size in self.files.items()]
        if not self.changed:
            lines.append(
                f'Nothing was sent; without --dry_run {len(self.files)} files go to {self.repo} in one commit.'
            )
        elif self.address is None:
            lines.append(f'{self.repo} holds the same already: no commit was made.')
        else:
            lines.append(f'Published: {self.address}')
        return '\n'.join([*lines, *self.notes, ''])


@stops.leaving('no file was published: all files go in one commit; give the same command again')
def publish(
    models: str | Path | Sequence[str | Path],
    *,
    to: str = 'hf',
    repo: str | None = None,
    card: str | Path | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> Published:
    """Sends model files, their card and its pictures to a repository, which is made if it is not there.

    Everything is checked before anything is sent. Files that are there already and differ are replaced by the commit.
    Of a card's folder go the card, the pictures that it and its record name, and the record; nothing else.

    Args:
        models: The model, and its exports.
        to: ``hf``.
        repo: ``user/name``; default: the name of the first file, of whom the token is.
        card: A folder of :func:`sdakd.commands.card.card`; default: one is made.
        private: Whether a new repository is private; one that is there must be then.
        dry_run: Checks and lists only.

    Raises:
        UserError: A file that cannot be used, no token, no right to write there, a hub that cannot be reached.
    """
    one_of(to, HUBS, '--to')
    models = model_files(models)
    if not models:
        raise UserError('-m', 'give a model.')
    compat.import_basicsr()
    name = models[0].stem
    check_repo('--repo', repo or f'USER/{name}')
    files = _model_files(models)
    with nullcontext() if dry_run else _hub() as hub:
        place = repo or f'{hub.user() if hub else "USER"}/{name}'
        with _card_folder(card, models[0], repo or (place if hub else None)) as (folder, notes):
            files |= _card_files(folder, files)
            sizes = {each: path.stat().st_size for each, path in files.items()}
            if hub is None:
                return Published(place, sizes, notes=notes)
            changed, address = hub.send(place, files, private)
            return Published(place, sizes, changed, address, notes)


# ------------------------------------------------------------------------------------------------- what is to be sent


def _model_files(models: Sequence[Path]) -> dict[str, Path]:
    """The files by their names, with what belongs to them: ncnn's other half, and ``NAME.json`` if it describes them.

    Raises:
        UserError: One does not open, or two have the same name.
    """
    from sdakd.files.generators import open_network
    from sdakd.files.training import beside, description
    from sdakd_arch.ncnn_file import is_ncnn

    files: dict[str, Path] = {}
    for model in models:
        opened = open_network(model)
        both = [model.with_suffix(ending) for ending in ('.param', '.bin')] if is_ncnn(model) else [model]
        said = [beside(model)] if model.suffix in ('.pth', '.param', '.bin') and description(opened) else []
        for path in [*both, *said]:
            if path.name in files and path not in files.values():
                raise UserError('-m', f'two files are called {path.name}; rename one.')
            files[path.name] = path
    return files


@contextmanager
def _card_folder(given: str | Path | None, model: Path, repo: str | None) -> Iterator[tuple[Path, list[str]]]:
    """The folder of the card, made where none is given, and what is to be said of it."""
    if given is not None:
        yield Path(given), []
        return
    with tempfile.TemporaryDirectory() as folder:
        made = card(model, folder, repo=repo)
        yield Path(folder), made.notes if made.license is None else []


def _card_files(folder: Path, models: dict[str, Path]) -> dict[str, Path]:
    """Of the folder of a card what is the card's, by name: the card, its record, and the pictures that both show.

    Raises:
        UserError: There is no card, it cannot be read, it shows pictures that are not there, or is another model's.
    """
    if not folder.is_dir():
        raise UserError('--card', f'{folder} is no folder; write one by `sdakd card -m {next(iter(models))}`.')
    readme = folder / README
    if reason := no_file(readme):
        raise UserError('--card', f'{readme} {reason}; write it by `sdakd card`.')
    try:
        text = readme.read_text(encoding='utf-8')
    except (OSError, ValueError) as error:
        raise UserError('--card', f'{readme} cannot be read ({one_line(error)}).') from None
    found = _metadata(text, readme)
    weights = [path for path in models.values() if path.suffix not in NO_WEIGHTS]
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in weights}
    ours = found.get('library_name') == 'sdakd'
    if ours and not any(digest in text for digest in digests):
        names = ', '.join(models)
        raise UserError('--card', f'{readme} is of another file: it has the SHA-256 of none of {names}; write it anew.')
    names = dict.fromkeys([README, *(name for name in _shown(text) if _is_here(name))])
    for record in sorted(folder.glob('*x-*.json')):
        if no_file(record):
            continue
        try:
            content = json.loads(record.read_text(encoding='utf-8'))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError('--card', f'{record} is damaged ({one_line(error)}); write it anew.') from None
        if any(each.get('sha256') in [*digests] for each in _mappings(content, 'resources')):
            images = [image.get(key) for image in _mappings(content, 'images') for key in ('LR', 'SR')]
            names |= dict.fromkeys([record.name, *(str(image).rpartition('/')[2] for image in images)])
    files = {name: folder / name for name in names}
    for name, path in files.items():
        if path.is_symlink():
            raise UserError(
                '--card', f'{path} is a link to another place, and links are not followed; put a copy there.'
            )
        if re.search(r'[\\/]', name) or no_file(path):
            raise UserError(
                '--card', f'{folder} shows {name}, which is not in the folder; write it anew by `sdakd card`.'
            )
    if both := sorted(set(files) & set(models)):
        raise UserError('--card', f'{folder} holds {both[0]}, which -m names as well; rename one.')
    return files


def _shown(text: str) -> Iterator[str]:
    """The addresses of the pictures of a card."""
    for found in PICTURES.finditer(text):
        yield unquote(next(filter(None, found.groups())))


def _is_here(address: str) -> bool:
    """Whether an address is that of a file beside the card, not one of the network or a picture itself."""
    return not re.match(r'[a-z][a-z0-9+.-]*:|//|#', address, re.IGNORECASE)


def _mappings(record: object, key: str) -> list[dict]:
    """A list of a record, whatever the file holds; empty where it has none."""
    found = record.get(key) if isinstance(record, dict) else None
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _metadata(text: str, readme: Path) -> dict[str, Any]:
    """The block of metadata of a card.

    Raises:
        UserError: It has none, or one that the Hub would not take.
    """
    found = re.match(r'\A---\r?\n(.*?)\r?\n---\r?\n', text, re.DOTALL)
    try:
        content = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as error:
        raise UserError('--card', f'the metadata of {readme} are no YAML ({one_line(error)}).') from None
    if not isinstance(content, dict) or not isinstance(content.get('license'), str):
        raise UserError(
            '--card', f'{readme} does not begin with metadata that name a license; write it by `sdakd card`.'
        )
    return content


# ------------------------------------------------------------------------------------------------------------ the hub


@contextmanager
def _hub() -> Iterator[Hub]:
    """The Hugging Face Hub; its library's errors become sentences."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            '--to hf', 'the package huggingface_hub is not installed: pip install huggingface_hub.'
        ) from None
    hub = Hub(huggingface_hub.HfApi(library_name='sdakd', library_version=__version__))
    try:
        yield hub
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        if sentence := _sentence(error, hub):
            raise sentence from None
        raise


class Hub:
    """The Hugging Face Hub, for whom the token is: ``HF_TOKEN``, or that of a login.

    Args:
        api: Its library's.
    """

    def __init__(self, api: HfApi) -> None:
        self.api, self.repo = api, ''

    def token(self) -> str:
        """The token.

        Raises:
            UserError: There is none, or it cannot be one.
        """
        from huggingface_hub import get_token

        remedy = f'`hf auth login`, or set HF_TOKEN to one that may write ({TOKENS}).'
        try:
            found = get_token()
        except (OSError, ValueError):  # the file of a login
            found = '\0'
        if not found:
            raise UserError('HF_TOKEN', f'there is no token: {remedy}')
        if not re.fullmatch(r'[!-~]+', found):  # no header can hold it, and errors would show it
            raise UserError('HF_TOKEN', f'the token holds characters that none has; copy it again: {remedy}')
        return found

    def user(self) -> str:
        """Whose token it is."""
        self.token()
        return str(self.api.whoami()['name'])

    def send(self, repo: str, files: dict[str, Path], private: bool) -> tuple[dict[str, str], str | None]:
        """Makes the repository if it is not there, and commits what differs.

        Returns:
            Of every file whether it is new, and the commit's address.

        Raises:
            UserError: The repository is public, and a private one was asked for.
        """
        from huggingface_hub import CommitOperationAdd

        self.token()
        self.repo = repo
        self.api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not self.api.repo_info(repo).private:
            raise UserError(
                '--private', f'{repo} is there already and public; make it private, or give another --repo.'
            )
        there = {info.path: info for info in self.api.get_paths_info(repo, list(files))}
        changed = {name: _change(path, there.get(name)) for name, path in files.items()}
        for name, what in changed.items():
            if what == 'replaced':
                say(f'{name} is in {repo} already and differs: the commit replaces it.')
        send = [name for name, what in changed.items() if what != 'the same']
        if not send:
            return changed, None
        adds = [CommitOperationAdd(name, str(files[name])) for name in send]
        done = self.api.create_commit(repo, adds, commit_message=f'{", ".join(send[:3])} by sdakd {__version__}')
        return changed, done.commit_url


def _change(path: Path, there: Any) -> str:
    """How a file differs from the Hub's, by git's or LFS' hash."""
    if there is None:
        return 'new'
    data = path.read_bytes()
    if getattr(there, 'lfs', None):
        same = there.lfs.sha256 == hashlib.sha256(data).hexdigest()
    else:
        same = there.blob_id == hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()
    return 'the same' if same else 'replaced'


def _sentence(error: BaseException, hub: Hub) -> UserError | None:
    """An error of the Hub's library; None for one that is a fault."""
    from huggingface_hub import errors

    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    where, what = '--to hf', hub.repo or 'the Hub'
    for each in causes:
        response = getattr(each, 'response', None)
        status = getattr(response, 'status_code', None)
        if status == 401:
            return UserError('HF_TOKEN', f'the Hub does not know this token; make a new one ({TOKENS}).')
        if status == 403:
            return UserError(
                'HF_TOKEN', f'this token may not write to {what}; take one that may ({TOKENS}), or your own --repo.'
            )
        if status is not None:
            said = one_line(getattr(each, 'server_message', None) or each)
            return UserError(where, f'the Hub refuses {what} (status {status}: {said}); no file was published.')
        if isinstance(each, errors.HFValidationError):
            return UserError('--repo', f'{what} is no name on the Hub ({one_line(each)}).')
        if isinstance(each, errors.OfflineModeIsEnabled):
            return UserError('HF_HUB_OFFLINE', 'it forbids the network; unset it to publish.')
    for each in causes:
        module = type(each).__module__.partition('.')[0]
        if module.startswith(('httpx', 'httpcore', 'requests', 'urllib3')) or isinstance(each, ConnectionError):
            return UserError(where, f'{hub.api.endpoint} cannot be reached ({one_line(each)}); no file was published.')
    return None
