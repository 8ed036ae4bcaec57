"""The list of scripts/mutants: each of its lines stands where it says, once. Whether tests see the mutants takes
minutes and is the script's affair.
"""

from mutants import MUTANTS, ROOT, beside


def test_every_line_of_the_list_is_in_the_source_once_and_has_tests() -> None:
    wrong = [(file, old) for file, old, _ in MUTANTS if (ROOT / "easgd_cli" / file).read_text().count(old) != 1]
    assert not wrong, "a line has changed: change its row in tests/mutants.py, too"
    assert all((ROOT / beside(file)[0]).exists() for file, _, _ in MUTANTS) and len(MUTANTS) >= 60
    assert all(old != new for _, old, new in MUTANTS)
