"""Requirements on numbers: which number a text names, what holds, what is refused."""

from __future__ import annotations

import operator

import pytest

from featviz.data.labels import report_labels, strict_checks
from featviz.data.listing import NOTHING
from featviz.errors import UserError
from featviz.numbers import Number
from featviz.requirements import check_requirements

NUMBERS = {
    "top-1": Number(0.55, "fraction", "", 0.48, 0.62, 224),
    "robust accuracy L∞ 0.5/255": Number(0.3, "fraction", "", 0.2, 0.4, 200),
    "median L∞ distance": Number(1.5, "/255", "", 1.25, None, 9),
    "corruptions: accuracy under corruption": Number(0.4, "fraction"),
    "self-test": Number("passed"),
    "mCE": Number(1.2, "fraction", "", 1.1, 1.3, 50),
    "nothing": Number(None, "fraction", "", 0.0, 1.0, 0),
}


@pytest.mark.parametrize(
    ("text", "name", "field", "bound", "met"),
    [
        ("top1.low>=0.48", "top-1", "low", 0.48, True),
        ("top-1 >= 50%", "top-1", "value", 0.5, True),
        ("Top_1.high < .6", "top-1", "high", 0.6, False),
        ("top 1.n == 224", "top-1", "n", 224, True),
        ("robust accuracy linf 0.5/255.low>.2", "robust accuracy L∞ 0.5/255", "low", 0.2, False),
        ("robust_accuracy_L∞_0.5/255<=1/2", "robust accuracy L∞ 0.5/255", "value", 0.5, True),
        ("median linf distance>=2/255", "median L∞ distance", "value", 2, False),
        ("median linf distance.low>1", "median L∞ distance", "low", 1, True),
        (
            "corruptions.accuracy under corruption!=0",
            "corruptions: accuracy under corruption",
            "value",
            0,
            True,
        ),
        ("self-test==passed", "self-test", "value", "passed", True),
        ("selftest!='passed'", "self-test", "value", "passed", False),
    ],
)
def test_a_requirement_names_a_number_a_field_and_a_bound(
    text: str, name: str, field: str, bound: object, met: bool
) -> None:
    (check,) = check_requirements([text], NUMBERS)
    assert (check.name, check.field, check.bound, check.met) == (name, field, bound, met)
    assert check.requirement == text


@pytest.mark.parametrize("sign", [">=", "<=", "==", "!=", ">", "<"])
def test_operators_are_those_of_python(sign: str) -> None:
    compare = {
        ">=": operator.ge,
        "<=": operator.le,
        "==": operator.eq,
        "!=": operator.ne,
        ">": operator.gt,
        "<": operator.lt,
    }[sign]
    for bound in (0.5, 0.55, 0.6):
        (check,) = check_requirements([f"top1{sign}{bound}"], NUMBERS)
        assert check.met is compare(0.55, bound)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("top-1", "no comparison"),
        (">=0.5", "no comparison"),
        ("top-1=0.5", 'single "="'),
        ("top-11.low>=.5", r"did you mean top-1\.low"),
        ("top-1.lwo>=.5", r"did you mean top-1\.low"),
        ("top-1>=50", "is a fraction; write 0.5 or 50%"),
        ("top-1>=half", "is no number"),
        ("top-1>=1/0", "is no number"),
        ("top-1>=nan", "nan compares with nothing"),
        ("median linf distance>=5%", "is no fraction"),
        ("corruptions.accuracy under corruption.low>=.1", "has no interval; require its value"),
        ("corruptions.accuracy under corruption.n>=1", "has no n"),
        ("self-test>=1", "is the text 'passed'"),
    ],
)
def test_what_cannot_be_compared_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        check_requirements([text], NUMBERS)
    assert "\n" not in str(raised.value)


def test_an_error_rate_in_units_of_another_may_pass_1() -> None:
    (check,) = check_requirements(["mce<=1.25"], NUMBERS)
    assert check.met


@pytest.mark.parametrize("text", ["nothing>=0", "nothing<=1", "median linf distance.high>=0"])
def test_a_number_without_a_value_meets_nothing(text: str) -> None:
    (check,) = check_requirements([text], NUMBERS)
    assert not check.met
    assert check.note


def test_a_name_that_fits_two_numbers_is_refused_and_an_exact_one_is_not() -> None:
    numbers = {"top-1": Number(1), "top 1": Number(2)}
    with pytest.raises(UserError, match="spell it out"):
        check_requirements(["top1>=0"], numbers)
    (check,) = check_requirements(["top 1==2"], numbers)
    assert check.met


@pytest.mark.parametrize(
    ("folders", "failing"),
    [
        (["cat", "dog"], []),
        (["cat", "cat"], ["classes without a picture"]),
        (["cat", "dog", "kot"], ["folders that are no class"]),
        (["", ""], ["pictures without any class"]),
    ],
)
def test_strict_asks_that_folders_and_classes_are_the_same(
    folders: list[str], failing: list[str]
) -> None:
    report = report_labels(
        folders, {}, NOTHING, model="m", synsets=("", ""), classes=("cat", "dog")
    )
    checks = strict_checks(report)
    assert [check.name for check in checks if not check.met] == failing
    unread = strict_checks(report.with_unreadable(["cat/1.png"], "empty"))
    assert not unread[-1].met
    assert "cat/1.png" in unread[-1].shown[2]
