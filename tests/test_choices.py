"""docs/choices.md is what benchmarks/choices.py makes of the code."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from choices import PAGE, entries, page

SOURCE = '''
"""Module. Choice: one
of many. So it is.

Choice: two. Because."""

X = 1  # Choice: three. It is odd.
# Choice: four. It
# is even.
'''


def test_the_page_is_of_the_code() -> None:
    assert PAGE.read_text() == page(), "run: python benchmarks/choices.py"


def test_choices_are_found_wherever_they_are() -> None:
    whats = [line.split("**")[1] for line in entries(SOURCE, "a.py")]
    assert sorted(whats) == ["four.", "one of many.", "three.", "two."]


@pytest.mark.parametrize("source", ["# choice: a. B.", "# Choice: no reason.", '"""My choice."""'])
def test_a_choice_in_another_form_is_an_error(source: str) -> None:
    with pytest.raises(ValueError, match=r"a\.py"):
        entries(source, "a.py")
