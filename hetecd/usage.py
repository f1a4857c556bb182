"""What is wrong with what was typed, in one line: the words of jsonargparse and argparse, in those of a user."""

import difflib
import re
from collections.abc import Collection, Iterable, Sequence

LISTS = ("optical_bands", "sar_bands", "bounds", "ce_weights", "val_ce_weights")  # flags that take several numbers
KINDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "tuple": "numbers"}
NUMBERS = re.compile(r"[\d.,eE+\-\s\[\]()]+")


def spelled(words: Iterable[str]) -> list[str]:
    """Flags in one spelling: ``--before-is`` as ``--before_is``, ``--sar-bands 2 1`` or ``2,1`` as ``[2,1]``."""
    out: list[str] = []
    numbers: list[str] | None = None  # of the flag before, if that takes several
    for word in words:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if flag:
            flag = flag.replace("-", "_").replace("__", "--", 1)
            numbers = [] if flag[2:] in LISTS else None
            out.append(flag if numbers is not None else flag + equals + value)
        if numbers is not None and NUMBERS.fullmatch(value):
            if numbers:
                out.pop()
            numbers += re.findall(r"[^\s,()\[\]]+", value)
            out.append(f"[{','.join(numbers)}]")
        elif not flag or (numbers is not None and equals):
            numbers = None
            out.append(value)
    return out


def explained(problem: str, flags: Collection[str] = ()) -> str:
    """What jsonargparse found wrong, as what was found where and what was expected.

    Args:
        problem: its message.
        flags: all that could have been meant, as ``--name``; none where keys are no flags.
    """
    problem = " ".join(problem.split())
    if found := re.fullmatch(r'(?:Parser key|argument) "?([\w.]+)"?(?: element \d+)?: (.*)', problem):
        key, says = found.groups()
        return f"{_flag(key, flags)}: {_value(says)}"
    if found := re.fullmatch(r"unrecognized arguments: (.*)", problem):
        word = found[1].split()[0]
        if not word.startswith("-"):
            return f"found '{found[1]}' too many"
        near = difflib.get_close_matches(word.partition("=")[0], flags, n=1)
        return f"{_hyphens(word)}: no such flag" + (f"; the nearest is {_hyphens(near[0])}" if near else "")
    if found := re.fullmatch(r"the following arguments are required: (.*)", problem):
        names = [_flag(name, flags) for name in found[1].split(", ")]
        return f"{', '.join(names)}: missing"
    return _hyphens(problem.removeprefix("argument "))


def _value(says: str) -> str:
    """Found and expected, of what jsonargparse says of a value; a message of another kind as it is."""
    kinds = re.findall(r"Expected a (<class '\w+'>|typing\.Literal\[.*?\]|tuple with \d+)", says)
    value = re.search(r"(?:Got value|Given value): (.*)", says)
    choice = re.fullmatch(r"invalid choice: '(.*)' \(choose from (.*)\)", says)
    if choice:
        return f"found '{choice[1]}', expected {_one_of(choice[2])}"
    expected = [_kind(kind) for kind in kinds if "NoneType" not in kind]
    if not expected or not value:
        return says
    return f"found '{value[1]}', expected {' or '.join(dict.fromkeys(expected))}"


def _kind(name: str) -> str:
    if "Literal" in name:
        return _one_of(name[name.index("[") + 1 : -1])
    if name.startswith("tuple"):
        return f"{name.rsplit(maxsplit=1)[-1]} numbers"
    return KINDS.get(name.split("'")[1], name)


def _one_of(names: str) -> str:
    words: Sequence[str] = [name.strip(" '\"") for name in names.split(",")]
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _flag(key: str, flags: Collection[str]) -> str:
    """A key as it is typed: ``--sar-bands`` for predict.sar_bands, BEFORE for a word without a flag."""
    name = key.rpartition(".")[2]
    if not flags:
        return name
    return _hyphens(f"--{name}") if f"--{name}" in flags else name.upper()


def _hyphens(text: str) -> str:
    return re.sub(r"--\w+", lambda flag: flag[0].replace("_", "-"), text)
