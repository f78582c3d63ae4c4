"""README.md shows what `python -m tests.sharing --readme` wrote there, for the cases of today."""

from tests.sharing.readme import Row, count, in_readme, rows_of, table
from tests.sharing.table import CASES, GRANTED, REFUSED


def test_a_table_can_be_read_back() -> None:
    rows = [Row("A: one, `w!`", REFUSED, GRANTED, REFUSED), Row("B: two", GRANTED, "neither", GRANTED)]
    assert rows_of(table(rows)) == rows
    assert count(rows) == "stock: 2 of 2 wrong, vbdkit: 0 of 2 wrong"


def test_the_names_of_the_cases_fit_the_table() -> None:
    assert len({name for name, _ in CASES}) == len(CASES)
    assert [name for name, _ in CASES if "|" in name or "*" in name or name.count(": ") < 1] == []


def test_readme_has_exactly_these_cases_and_vbdkit_is_right_in_all() -> None:
    rows = rows_of(in_readme())
    assert [(row.name, row.right, row.vbdkit) for row in rows] == [
        (name, case.right, case.right) for name, case in CASES
    ], "run python -m tests.sharing --readme"
    assert count(rows) in in_readme()
    assert any(row.stock != row.right for row in rows)
