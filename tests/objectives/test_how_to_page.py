"""The code of the page "write your own objective" runs as it stands."""

import re
import sys
import types
from pathlib import Path

import pytest

from ctgrounding.testing import ContractError, check_objective

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "write-your-own-objective.md"


@pytest.fixture
def module(monkeypatch):
    """A module that the page's code lives in, so that its class can be pickled."""
    made = types.ModuleType("how_to_page")
    monkeypatch.setitem(sys.modules, "how_to_page", made)
    return made


def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_example_runs_and_is_lawful(module):
    found = blocks()
    assert len(found) == 2
    for block in found:
        exec(block, vars(module))


@pytest.mark.parametrize(
    ("instead", "part"),
    [
        ("scores[answer == 0]", "total of term gap"),
        (
            "distributed.gather(scores[answer == 0].detach() if distributed.world_size() > 1 else scores[answer == 0])",
            "gradient",
        ),
    ],
)
def test_without_a_gather_with_gradient_it_would_not_be(module, instead, part):
    example = blocks()[0]
    gather = "distributed.gather(scores[answer == 0])"
    assert gather in example
    exec(example.replace(gather, instead), vars(module))
    with pytest.raises(ContractError, match=f"Law 'ranks' is broken: .*{part}"):
        check_objective(module.MoreOfIt, alternatives={"sentence": "Fluid.", "denial": "No fluid."})
