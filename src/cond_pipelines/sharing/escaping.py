"""Text of others, such as labels and captions, written so that it stays text: one function for each place it goes to.

A terminal's is `console.for_terminal`; YAML is written by PyYAML, which quotes what it has to.
"""

import re
import shlex

_MAX_CHARACTERS = 500


class Raw(str):
    """Text that stands in a card as it is: ours, the author's own markdown, or what was escaped for its place."""


def one_line(text: object) -> str:
    """As one line without characters that are not shown or that turn the direction of others."""
    words = " ".join(str(text)[: 4 * _MAX_CHARACTERS].split())
    shown = "".join(c for c in words if c.isprintable())
    return shown if len(shown) <= _MAX_CHARACTERS else shown[: _MAX_CHARACTERS - 1] + "…"


def markdown_text(text: object) -> Raw:
    r"""For a place within a line of markdown: no heading, list, link, code, formula or HTML.

    Example:
        >>> markdown_text("# <b>rose</b> of *mine*")
        '\\# \\<b\\>rose\\</b\\> of \\*mine\\*'
    """
    line = one_line(text)
    at = r"(?<!\w)@|@(?=[\w.-]*\.\w)"  # of a mention or an address, not of "R@1"
    line = re.sub(rf"[\\`*\[\]<>&~!$]|{at}|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line)
    line = re.sub(r"^(#|[+-](?=\s|$)|[=-]{2,}|\d+(?=[.)](\s|$)))", lambda m: _escaped_start(m.group()), line)
    return Raw(re.sub(r"(?i)(:)(?=//)|(?<=www)(\.)", r"\\\g<0>", line))  # an address becomes no link


def _escaped_start(text: str) -> str:
    return f"{text}\\" if text[-1].isdigit() else f"\\{text}"  # `1\.` and `\#`


def table_cell(text: object) -> Raw:
    """For a cell of a markdown table."""
    return Raw(markdown_text(text).replace("|", r"\|"))


def code_line(text: object) -> Raw:
    """For a line within a block of code, which no backticks can end."""
    return Raw(one_line(text).replace("`", "'"))


def shell_word(text: object) -> Raw:
    """For one argument of a command within a block of code."""
    return Raw(shlex.quote(code_line(text)))


def python_source(source: str) -> Raw:
    """Python literals within a block of code: what is not shown is written as an escape, which is the same string."""
    return Raw("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in source))
