"""Read YAML strictly: doubled keys, files that blow up and syntax errors are refused in one line that says where.

An unquoted scalar keeps its text beside what YAML makes of it, because `no`, `on` or `010` may be meant as text or as
the number 10. Leaves out what the values mean (config.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dixit.common import DixitError

MAX_BYTES = 100_000  # of a file
MAX_VALUES = 20_000  # of a file, with aliases and merged mappings counted wherever they are used


class Plain(str):
    """The text of an unquoted scalar; `value` is what YAML reads it as: a number, a bool, None, or the same text."""

    value: Any

    def __new__(cls, text: str, value: Any) -> Plain:
        made = super().__new__(cls, text)
        made.value = value
        return made


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file as dicts, lists, `Plain` and quoted str; None if it is empty.

    Raises DixitError, with line and column, for what is not one YAML document of text keys.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DixitError(f"cannot read the config {path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise DixitError(f"{path} is larger than {MAX_BYTES // 1000} kB; a config is a YAML file of some kB")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    try:
        text = data.decode(encoding).removeprefix("\ufeff")  # a byte-order mark
    except UnicodeDecodeError as error:
        line = data[:error.start].count(b"\n") + 1
        raise DixitError(f"{path} is not valid YAML: line {line} is not UTF-8 text; save it as UTF-8") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Any:
    """What a YAML text says; see read_yaml. `name` says in errors where the text is from."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_size(root, name)
        return _value(root, name) if root else None
    except yaml.reader.ReaderError as error:
        before = text[:error.position]
        place = f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"
        raise DixitError(f"{name} is not valid YAML: {place}: a character that YAML does not allow") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = " ".join(filter(None, (error.problem, f"({error.context})" if error.context else "")))
        raise DixitError(f"{name} is not valid YAML: {place}{what[:150]}") from None
    except RecursionError:
        raise DixitError(f"{name} is not valid YAML: its values are nested too deeply") from None


def _check_size(root: yaml.Node | None, name: str) -> None:
    """Refuse what aliases and merges expand to more than MAX_VALUES values, aliases of themselves among them."""
    waiting, count = [root] if root else [], 0
    while waiting:
        node = waiting.pop()
        count += 1
        if count > MAX_VALUES:
            raise DixitError(f"{name} has more than {MAX_VALUES} values, with its aliases expanded; write a config "
                             "without anchors")
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _value(node: yaml.Node, name: str, where: str = "") -> Any:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.CollectionNode) and kind not in ("map", "seq"):
        line = node.start_mark.line + 1
        raise DixitError(f"{name} is not valid YAML: line {line}: the tag {kind[:40]} is not allowed")
    if isinstance(node, yaml.SequenceNode):
        return [_value(part, name, f"{where}[{i}]") for i, part in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, name, where)
    if kind == "str":
        return Plain(node.value, node.value) if node.style is None else node.value
    try:
        value = yaml.SafeLoader("").construct_object(node)
    except ValueError:  # a number of too many digits, a date in month 13
        value = node.value
    return Plain(node.value, value)


def _mapping(node: yaml.MappingNode, name: str, where: str) -> dict[str, Any]:
    """A mapping's keys and values; what `<<` merges into it comes first and gives way to its own keys."""
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key, part in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise DixitError(f"{name} is not valid YAML: line {line}: a key must be a name")
        path = f"{where}.{key.value}" if where else key.value
        if key.value in lines:
            first = lines[key.value]
            raise DixitError(f"config: '{path}' stands twice in {name}, in " +
                             (f"lines {first} and {line}" if first != line else f"line {line}") + "; keep one")
        lines[key.value] = line
        if key.tag == "tag:yaml.org,2002:merge":
            for source in part.value if isinstance(part, yaml.SequenceNode) else [part]:
                if not isinstance(source, yaml.MappingNode):
                    raise DixitError(f"{name} is not valid YAML: line {line}: << merges mappings only")
                merged = _mapping(source, name, where) | merged
        else:
            own[key.value] = _value(part, name, path)
    return merged | own
