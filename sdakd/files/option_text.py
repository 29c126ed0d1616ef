"""Option files as text: single keys are changed, and every other line stays as it is, comments included.

A YAML library that writes what it has read changes more than it is asked to: ruamel.yaml, which keeps comments, turns
``!!float 5e-3`` into ``5e-3``, which the YAML of BasicSR reads as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml

from sdakd.compat import UserError

Path = Sequence[str]
REFUSAL = "it cannot be changed key by key; write a key a line, as in BasicSR's option files."


class OptionText:
    """The text of an option file, and what it says.

    Comments stay. A line that goes and has one becomes a comment as a whole. Only between braces that span lines may a
    comment be lost.

    Args:
        text: YAML without tags that execute code (:func:`sdakd_models.reader.read_yaml` refuses them).

    Attributes:
        values: What the text says.
    """

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self.values: dict = yaml.safe_load(text)

    def get(self, path: Path, default: object = None) -> object:
        """The value under a path of keys; the default where a key of it is missing or null."""
        found: object = self.values
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        return default if found is None else found

    def set(self, path: Path, value: str) -> None:
        """Gives a key that is there another value.

        Args:
            path: Of the key.
            value: YAML in one line.
        """
        key, node, parent, _ = self._find(path)
        if parent.flow_style:
            self._splice(node.start_mark.index, self._end(node), value)
        else:
            first, last = key.start_mark.line, self._last_line(node)
            colon = self._text().index(':', key.end_mark.index) - (key.start_mark.index - key.start_mark.column)
            _, comment = self._split(first)
            head = f'{self._lines[first][: colon + 1]} {value}{comment}'
            self._lines[first : last + 1] = [head, *self._retired(first + 1, last)]
        self._parent(path)[path[-1]] = yaml.safe_load(value)

    def rename(self, path: Path, name: str) -> None:
        """Gives a key another name."""
        key = self._find(path)[0]
        self._splice(key.start_mark.index, key.end_mark.index, name)
        block = self._parent(path)
        entries = [(name if each == path[-1] else each, value) for each, value in block.items()]
        block.clear()
        block.update(entries)

    def remove(self, path: Path) -> None:
        """Takes a key away, with its value."""
        key, node, parent, number = self._find(path)
        if parent.flow_style:
            begin, end = key.start_mark.index, self._end(node)
            if number + 1 < len(parent.value):
                end = parent.value[number + 1][0].start_mark.index
            elif number:
                begin = self._end(parent.value[number - 1][1])
            self._splice(begin, end, '')
        else:
            first, last = key.start_mark.line, self._last_line(node)
            kept = self._retired(first, last)
            around = self._lines[first - 1 : first], self._lines[last + 1 : last + 2]
            if not kept and all(not ''.join(lines).strip() for lines in around):  # of two empty lines, one is enough
                last += 1
            self._lines[first : last + 1] = kept
        del self._parent(path)[path[-1]]

    def add(self, path: Path, value: str, after: str | None = None, gap: bool = False) -> None:
        """Adds a key to a block.

        Args:
            path: Of the new key; its block has keys already.
            value: YAML; in several lines, it begins with a line break and is indented as at the left margin.
            after: The key of the block behind which it goes; default: its last one.
            gap: Whether an empty line goes in front.
        """
        block = self._parent(path)
        after = list(block)[-1] if after is None else after
        key, node, parent, _ = self._find([*path[:-1], after])
        separator = '' if value.startswith('\n') else ' '
        if parent.flow_style:
            end = self._end(node)
            self._splice(end, end, f', {path[-1]}:{separator}{value}')
        else:
            indent, last = ' ' * key.start_mark.column, self._last_line(node)
            lines = [indent + line for line in f'{path[-1]}:{separator}{value}'.splitlines()]
            self._lines[last + 1 : last + 1] = [*([''] if gap else []), *lines]
        block[path[-1]] = yaml.safe_load(value)

    def written(self) -> str:
        """The text.

        Raises:
            UserError: It does not say what was asked for, because of YAML that option files do without (anchors, merge
                keys, a whole block between braces); changing a key raises it as well.
        """
        text = self._text()
        try:
            same = yaml.safe_load(text) == self.values
        except yaml.YAMLError:
            same = False
        if not same:
            raise UserError('', REFUSAL)
        return text

    # ------------------------------------------------------------------------------------------------ where keys are

    def _text(self) -> str:
        return '\n'.join(self._lines) + '\n'

    def _splice(self, begin: int, end: int, new: str) -> None:
        text = self._text()
        self._lines = (text[:begin] + new + text[end:]).splitlines()

    def _parent(self, path: Path) -> dict:
        block = self.values
        for key in path[:-1]:
            block = block[key]
        return block

    def _find(self, path: Path) -> tuple[yaml.Node, yaml.Node, yaml.MappingNode, int]:
        """A key, its value, the mapping that they stand in, and their number there."""
        try:
            node = yaml.compose(self._text(), yaml.SafeLoader)
        except yaml.YAMLError:  # between braces, a block was added
            raise UserError('', REFUSAL) from None
        for name in path:
            if not isinstance(node, yaml.MappingNode):
                break
            parent = node
            number = next((n for n, (key, _) in enumerate(parent.value) if key.value == name), None)
            if number is None:
                break
            key, node = parent.value[number]
        else:
            return key, node, parent, number
        raise UserError('', REFUSAL)  # a merge key brings it

    def _end(self, node: yaml.Node) -> int:
        """Where a value ends; PyYAML ends a block where the next key begins, behind comments."""
        if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
            last = node.value[-1]
            return self._end(last[1] if isinstance(last, tuple) else last)
        return len(self._text()[: node.end_mark.index].rstrip())

    def _last_line(self, node: yaml.Node) -> int:
        return self._text().count('\n', 0, self._end(node))

    def _split(self, number: int) -> tuple[str, str]:
        """A line without its comment, and the comment with the space in front of it."""
        line = self._lines[number]
        if '#' not in line:
            return line.rstrip(), ''
        start = sum(len(each) + 1 for each in self._lines[:number])
        tokens = yaml.scan(self._text(), yaml.SafeLoader)
        texts = [(t.start_mark.index, t.end_mark.index) for t in tokens if isinstance(t, yaml.ScalarToken) and t.style]
        for found in re.finditer(r'(?<!\S)#', line):
            if not any(begin <= start + found.start() < end for begin, end in texts):
                content = line[: found.start()].rstrip()
                return content, line[len(content) :]
        return line.rstrip(), ''

    def _retired(self, first: int, last: int) -> list[str]:
        """What is left of lines that go: those with a comment, as comments."""
        kept = []
        for number in range(first, last + 1):
            content, comment = self._split(number)
            if comment:
                indent = ' ' * (len(content) - len(content.lstrip()))
                kept.append(f'{indent}# {content.lstrip()}{comment}' if content else self._lines[number])
        return kept
