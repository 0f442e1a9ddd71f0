"""Writes docs/choices.md: every choice of the code that the paper leaves open, word for word.

A choice is written `Choice: what. Why.`, in a comment or a docstring, to the end of its paragraph.

    python benchmarks/choices.py
"""

import ast
import io
import re
import tokenize
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "choices.md"
HEAD = """# Choices

What the paper leaves open, and what this project does there: the `Choice:` remarks of the code,
collected by `python benchmarks/choices.py`. Where the code follows the paper it says `Paper:`.
"""


def comments(source: str) -> list[str]:
    """The comments: lines one below the other, in one column, are one."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = [(*token.start, token.string) for token in tokens if token.type == tokenize.COMMENT]
    runs = groupby(enumerate(found), lambda item: (item[1][0] - item[0], item[1][1]))
    return [" ".join(text.lstrip("# ") for _, (_, _, text) in run) for _, run in runs]


def docstrings(source: str) -> list[str]:
    """The paragraphs of every string that is a statement of its own."""
    texts = [
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    return [paragraph for text in texts for paragraph in re.split(r"\n\s*\n", text)]


def entries(source: str, name: str) -> list[str]:
    """A line for each choice of `source`, a file called `name`; ValueError: one in another form."""
    lines = []
    for text in (*comments(source), *docstrings(source)):
        before, *choices = re.split(r"\bChoice: ", " ".join(text.split()))
        stray = [part for part in (before, *choices) if re.search(r"(?i)\bchoices?\b", part)]
        if stray:
            raise ValueError(f"{name}: write `Choice: what. Why.`, got: {stray[0]}")
        for choice in choices:
            what, _, why = choice.strip().partition(". ")
            if not what or not why.endswith("."):
                raise ValueError(f"{name}: a choice has a reason: {choice}")
            lines.append(f"- `{name}`: **{what}.** {why}")
    return lines


def page() -> str:
    package, rooms = ROOT / "src" / "regen", dict[str, list[str]]()
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package).as_posix()
        rooms.setdefault(name.partition("/")[0], []).extend(entries(file.read_text(), name))
    parts = [f"\n## {room}\n\n" + "\n".join(lines) + "\n" for room, lines in rooms.items() if lines]
    return HEAD + "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
