"""The short form of scripts/chaos: a few runs whose processes are killed and stopped at random moments."""

from __future__ import annotations

from pathlib import Path

import chaos
import pytest


@pytest.mark.parametrize("number", [2, 4])
def test_whatever_is_killed_or_stopped_a_run_ends_as_it_should(number: int, tmp_path: Path) -> None:
    case = chaos.drawn(1, number)
    chaos.one(case, tmp_path)


def test_the_same_seed_draws_the_same_faults_and_all_kinds_come() -> None:
    cases = [chaos.drawn(5, number) for number in range(300)]
    assert list(map(str, cases)) == [str(chaos.drawn(5, number)) for number in range(300)]
    faults = {(f.party, f.number.name) for case in cases for f in case.faults}
    for party in ("worker", "master", "evaluator", "server"):
        assert {(party, "SIGKILL"), (party, "SIGSTOP")} <= faults
    assert {("launcher", n) for n in ("SIGKILL", "SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")} <= faults
    words = {word for case in cases for word in case.words}
    assert {f"algo={algo}" for algo in chaos.METHODS} <= words and {"launcher=local", "launcher=simulated"} <= words


def test_what_is_wrong_is_seen(tmp_path: Path) -> None:
    """A process that is left, a file in TMPDIR, and a run that never completes."""
    site = chaos.Site(tmp_path / "site")
    (site.temporary / "pymp-x").mkdir()
    with pytest.raises(chaos.Wrong, match="left in TMPDIR: \\['pymp-x'\\]"):
        chaos.look(site)
    assert not chaos.complete(site.run)
