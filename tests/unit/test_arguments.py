"""Words on a command line become a call's arguments."""

from __future__ import annotations

import pytest

from agentlink.run_view import WorkflowUnknown, find_workflow, parse_arguments
from workflows import CallRefused, research, workflow


@workflow
def open_ended(*numbers: int, **ratios: float) -> None:
    """A workflow with as many parameters as one likes."""


@workflow
def typed(name: str, count: int, *, ratio: float = 0.5, flags: list[str] | None = None, on: bool = False) -> None:
    """A workflow with parameters of all kinds."""


def test_words_take_the_types_of_their_parameters() -> None:
    args, kwargs = parse_arguments(typed, ["x", "3", "--ratio", "0.25", '--flags=["a", "b"]', "--on", "true"])
    assert args == ["x", 3]
    assert kwargs == {"ratio": 0.25, "flags": ["a", "b"], "on": True}


def test_parameters_can_be_given_by_name_in_any_order() -> None:
    assert parse_arguments(typed, ["--count=7", "--name", "x"]) == (["x", 7], {})


def test_as_many_as_one_likes_take_the_type_they_share() -> None:
    assert parse_arguments(open_ended, ["1", "2", "--a-b", "0.5"]) == ([1, 2], {"a_b": 0.5})
    with pytest.raises(CallRefused, match=r"numbers: input should be a valid integer.*, got 'two'"):
        parse_arguments(open_ended, ["1", "two"])
    with pytest.raises(CallRefused, match=r"ratio: input should be a valid number.*, got 'half'"):
        parse_arguments(open_ended, ["--ratio", "half"])


def test_one_word_will_do_for_a_list_of_one() -> None:
    args, _ = parse_arguments(research, ["docs", "why?"])
    assert args == [["docs"], "why?"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["x"], "missing a required argument: 'count'"),
        (["x", "many"], "count: input should be a valid integer"),
        (["x", "1", "2"], "too many positional arguments"),
        (["x", "1", "--ratio"], "--ratio needs a value"),
        (["x", "1", "--colour", "red"], "got an unexpected keyword argument 'colour'"),
    ],
)
def test_a_wrong_word_is_named(words: list[str], problem: str) -> None:
    with pytest.raises(CallRefused) as raised:
        parse_arguments(typed, words)
    assert problem in str(raised.value)


def test_a_workflow_is_found_by_the_last_part_of_its_name() -> None:
    assert find_workflow("research").name == "workflows.research.research"
    assert find_workflow("tests.integration.sample.sums").name == "tests.integration.sample.sums"


def test_an_unknown_workflow_lists_those_there_are() -> None:
    with pytest.raises(WorkflowUnknown, match=r"known are .*workflows\.research\.research"):
        find_workflow("reserch")


def test_what_is_wrong_and_long_is_cut() -> None:
    with pytest.raises(WorkflowUnknown, match=r"no workflow is called 'x{98}…; known"):
        find_workflow("x" * 5000)
    with pytest.raises(CallRefused, match=r", got 'y{98}…$"):
        parse_arguments(typed, ["x", "y" * 5000])
