"""How text that others chose is shown: names of files, paths, what an exception says, what a worker or a user's command
wrote.
"""

from __future__ import annotations

TEXT_CHARS_MAX = 4000
NAME_CHARS_MAX = 500


def printable(text: object, most: int = TEXT_CHARS_MAX) -> str:
    """Return ``text`` as one line that a terminal, a log and a page show as it is.

    Control characters, escape sequences, line separators, marks that turn the direction of writing, and bytes of a
    file's name that are not UTF-8 are written as JSON writes them, such as ``\\u001b``. What is longer than ``most``
    characters is cut.
    """
    shown = str(text)
    if len(shown) > most:
        shown = f"{shown[:most]}..."
    return shown if shown.isprintable() else "".join(one if one.isprintable() else _escaped(one) for one in shown)


def printable_name(name: object) -> str:
    """Return the name of a file, or a path, as :func:`printable` does; a very long one is cut."""
    return printable(name, NAME_CHARS_MAX)


def printable_lines(text: str) -> str:
    """The same for our own text of several lines, which may quote foreign text; nothing is cut."""
    return "\n".join(printable(line, len(line)) for line in text.split("\n"))


def _escaped(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return "\\n"
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
