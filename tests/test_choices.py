"""docs/choices.md lists every choice of the code, word for word, and no other.

A choice is written `Choice: what. Why.`, in a comment or a docstring, to the end of its paragraph.
"""

import ast
import io
import re
import tokenize
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "choices.md"
ENTRY = re.compile(r"- `[\w/]+\.py`: \*\*\S.*\.\*\* \S.*\.")


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
    """The lines of the document that the choices of `source`, a file called `name`, ask for."""
    lines = []
    for text in (*comments(source), *docstrings(source)):
        words = " ".join(text.split())
        before, *choices = re.split(r"\bChoice: ", words)
        stray = [part for part in (before, *choices) if re.search(r"(?i)\bchoices?\b", part)]
        assert not stray, f"{name}: write `Choice: what. Why.`, got: {stray[0]}"
        for choice in choices:
            what, _, why = choice.strip().partition(". ")
            assert what and why.endswith("."), f"{name}: a choice has a reason: {choice}"
            lines.append(f"- `{name}`: **{what}.** {why}")
    return lines


def stated() -> Counter[str]:
    package = ROOT / "src" / "regen"
    files = sorted(package.rglob("*.py"))
    assert len(files) > 30
    return Counter(
        line
        for file in files
        for line in entries(file.read_text(), file.relative_to(package).as_posix())
    )


def listed() -> Counter[str]:
    return Counter(line for line in DOCUMENT.read_text().splitlines() if line.startswith("- "))


def test_the_list_is_equal_to_the_code() -> None:
    code, document = stated(), listed()
    assert len(code) > 20
    missing, surplus = "\n".join(code - document), "\n".join(document - code)
    assert not missing, f"add to docs/choices.md:\n{missing}"
    assert not surplus, f"no such choice in the code; remove from docs/choices.md:\n{surplus}"


def test_every_entry_has_a_choice_and_a_reason() -> None:
    assert all(ENTRY.fullmatch(line) for line in listed())


SOURCE = '''
"""Module. Choice: one
of many. So it is.

Choice: two. Because."""

X = 1  # Choice: three. It is odd.
# Choice: four. It
# is even.


class A:
    """Class."""

    x: int
    """A field. Choice: five. Why not."""
'''


def test_choices_are_found_wherever_they_are() -> None:
    whats = [line.split("**")[1] for line in entries(SOURCE, "a.py")]
    assert sorted(whats) == ["five.", "four.", "one of many.", "three.", "two."]
    assert "- `a.py`: **four.** It is even." in entries(SOURCE, "a.py")


@pytest.mark.parametrize(
    "source",
    ["# choice: a. B.", "# Choice; see there.", "# Choice: no reason.", '"""My choice."""'],
)
def test_a_choice_in_another_form_is_an_error(source: str) -> None:
    with pytest.raises(AssertionError, match=r"a\.py"):
        entries(source, "a.py")
