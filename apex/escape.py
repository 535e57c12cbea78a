"""Text from records, folders and configuration as plain words of a page: nothing in it acts as markup. HTML has `html.escape`."""

from __future__ import annotations

import re

_RST = re.compile(r"([\\`*_|:@{}%#])")  # of inline markup and of addresses, and of Jinja


def one_line(text: object) -> str:
    """The text with every run of line ends and other control characters as one space."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", str(text))


def markdown(text: object) -> str:
    """As Markdown, also in a table's cell: no HTML, link or image, and no cell's or line's end. Emphasis and code stay possible."""
    plain = re.sub(r"&(?=#?\w+;)", "&amp;", one_line(text)).replace("<", "&lt;")
    plain = re.sub(r"([\\|])", r"\\\1", plain)
    return re.sub(r"\](?=[(\[:])", r"\\]", plain.replace("![", "!\\["))


def code(text: object) -> str:
    """As code in a line of Markdown, in marks that the text does not hold."""
    plain = one_line(text)
    longest = max(map(len, re.findall("`+", plain)), default=0)
    marks, space = "`" * (longest + 1), " " if longest else ""
    return f"{marks}{space}{plain}{space}{marks}"


def rst(text: object) -> str:
    """As words within a line of reStructuredText that Snakemake passes through Jinja: no directive, role, link or template."""
    return _RST.sub(r"\\\1", one_line(text).strip())
