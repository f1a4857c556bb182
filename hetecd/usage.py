"""What is wrong with what was typed, in one line: the words of jsonargparse and argparse, in those of a user."""

import difflib
import re
from collections.abc import Collection, Iterable

# Flags that take several numbers, and at most how many.
LISTS = {"optical_bands": 999, "sar_bands": 999, "bounds": 4, "ce_weights": 2, "val_ce_weights": 2}
KINDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "tuple": "numbers"}
BAND = r"\d{1,3}"  # no year, as a folder may be named
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


def spelled(words: Iterable[str]) -> list[str]:
    """Flags in one spelling: ``--before-is`` as ``--before_is``, ``--sar-bands 2 1`` or ``2,1`` as ``[2,1]``."""
    out: list[str] = []
    of, numbers = "", list[str]()  # the flag that takes several, and those that it has
    for word in words:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if flag:
            flag = flag.replace("-", "_").replace("__", "--", 1)
            more = numbers_in(flag[2:], value) if equals else []
            out.append(f"{flag}=[{','.join(more)}]" if more else flag + equals + value)
            of, numbers = ("" if equals else flag[2:]), []
            continue
        more = numbers_in(of, word)
        if more and len(numbers) < LISTS[of]:
            if numbers:
                out.pop()
            numbers += more
            out.append(f"[{','.join(numbers)}]")
        else:
            of = ""
            out.append(word)
    return out


def numbers_in(flag: str, word: str) -> list[str]:
    """The numbers that a word gives a flag, such as ``2``, ``2,1`` or ``[2,``; none where it is something else."""
    if flag not in LISTS:
        return []
    one = BAND if flag.endswith("bands") else NUMBER
    return re.findall(one, word) if re.fullmatch(rf"[\[(]?\s*{one}([\s,]+{one})*\s*,?\s*[\])]?", word) else []


def explained(problem: str, flags: Collection[str] = ()) -> str:
    """What jsonargparse found wrong, as what was found where and what was expected.

    Args:
        problem: its message.
        flags: all that could have been meant, as ``--name``; none where keys are no flags.
    """
    problem = " ".join(problem.split())
    if found := re.fullmatch(r'(?:Parser key|argument) "?([\w./-]+)"?(?: element \d+)?: ?(.*)', problem):
        key, says = found.groups()
        return f"{_flag(key, flags)}: {_value(says)}"
    if found := re.fullmatch(r"unrecognized arguments: (.*)", problem):
        word = next((word.partition("=")[0] for word in found[1].split() if word.startswith("-")), "")
        if not word:
            return f"found '{found[1]}' too many"
        return f"{_hyphens(word)}: no such flag{_nearest(word, flags)}"
    if found := re.fullmatch(r"the following arguments are required: (.*)", problem):
        names = [_flag(name, flags) for name in found[1].split(", ")]
        return f"{', '.join(names)}: missing"
    return problem


def _value(says: str) -> str:
    """Found and expected, of what jsonargparse says of a value; a message of another kind as it is."""
    kinds = re.findall(r"Expected (?:a )?(<class '\w+'>|typing\.Literal\[.*?\]|tuple with \d+)", says)
    value = re.search(r"Given value: ?(.*)", says) or re.search(r"Got value: ?(.*)", says)
    choice = re.fullmatch(r"invalid choice: '(.*)' \(choose from (.*)\)", says)
    if choice:
        return f"found '{choice[1]}', expected {_one_of(choice[2])}{_nearest(choice[1], _names(choice[2]))}"
    if says.startswith("ignored explicit argument"):
        return f"found {says.rsplit(maxsplit=1)[-1]}, expected no value"
    if says.startswith("unsupported operand"):  # {1}, which YAML takes for a mapping, as numbers
        return "found something else, expected numbers"
    expected = [_kind(kind) for kind in kinds if "NoneType" not in kind]
    if not expected or not value:
        return says
    nearest = _nearest(value[1], [name for kind in kinds if "Literal" in kind for name in _names(kind)])
    return f"found '{value[1]}', expected {' or '.join(dict.fromkeys(expected))}{nearest}"


def _kind(name: str) -> str:
    if "Literal" in name:
        return _one_of(name)
    if name.startswith("tuple"):
        return f"{name.rsplit(maxsplit=1)[-1]} numbers"
    return KINDS.get(name.split("'")[1], name)


def _nearest(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return f"; the nearest is {_hyphens(near[0])}" if near else ""


def _names(listed: str) -> list[str]:
    """Those in ``typing.Literal['a', 'b']`` or ``'a', 'b'``."""
    listed = listed.removeprefix("typing.Literal[").removesuffix("]")
    return [name.strip(" '\"") for name in listed.split(",")]


def _one_of(listed: str) -> str:
    words = _names(listed)
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _flag(key: str, flags: Collection[str]) -> str:
    """A key as it is typed: ``--sar-bands`` for predict.sar_bands, BEFORE for a word without a flag."""
    if key.startswith("-"):
        return _hyphens(key)
    name = key.rpartition(".")[2]
    if not flags:
        return name
    return _hyphens(f"--{name}") if f"--{name}" in flags else name.upper()


def _hyphens(text: str) -> str:
    return re.sub(r"--\w+", lambda flag: flag[0].replace("_", "-"), text)
