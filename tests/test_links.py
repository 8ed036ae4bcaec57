"""What is told of the links to hosts: by figures made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from easgd_cli.launcher.journal.links import Carries, HostLink, Links
from easgd_cli.training.snapshot import Moment


class Journal:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.progress = SimpleNamespace(links=self.show)

    def show(self, lines: list[str]) -> None:
        self.lines = lines

    def system(self, moment: Moment, **figures: Any) -> None:
        self.rows.append(figures)


def link(host: str, up: int, down: int, **of: Any) -> HostLink:
    given = {"carries": Carries(1e6, 2e6), "silent": 0.1, **of}
    return HostLink(host, [1, 2], (up, 0.5), (down, None), **given)


def test_shares_are_of_what_went_since_the_last_look_over_what_the_link_carries() -> None:
    journal = Journal()
    links = Links(journal)  # type: ignore[arg-type]
    links.look([link("b", 500_000, 1_000_000)], Moment(1.0, 10, 20))
    links.look([link("b", 700_000, 3_000_000)], Moment(3.0, 30, 60))
    first, second = journal.rows
    assert (first["link_share_up"], first["link_share_down"]) == (50.0, 50.0)
    assert (second["link_share_up"], second["link_share_down"]) == (10.0, 50.0)
    assert second["host"] == "b" and second["link_bytes_up"] == 700_000 and second["link_seconds_up"] == 0.5
    assert "link_seconds_down" not in second  # which nobody knows
    assert journal.lines == ["b: 2 workers, 0.7 MB up (10 % of the link), 3.0 MB down (50 % of the link)"]


def test_who_is_silent_or_has_left_comes_first_and_no_more_than_four_are_shown() -> None:
    journal = Journal()
    links = Links(journal)  # type: ignore[arg-type]
    hosts = [link(f"h{i}", i * 1000, 0) for i in range(9)]
    hosts[3] = link("h3", 0, 0, silent=5.2)
    hosts[5] = link("h5", 0, 0, silent=None)
    links.look(hosts, Moment(1.0, 10, 20))
    assert journal.lines[:2] == ["h5: has left", "h3: 2 workers, nothing heard of it for 5 s"]
    assert [line[:3] for line in journal.lines[2:4]] == ["h8:", "h7:"]
    assert journal.lines[4:] == ["and 5 links more"]


def test_a_link_that_was_not_measured_has_no_shares() -> None:
    journal = Journal()
    links = Links(journal)  # type: ignore[arg-type]
    links.look([link("b", 500_000, 0, carries=None)], Moment(1.0, 10, 20))
    assert not any("share" in name for name in journal.rows[0])
    assert journal.lines == ["b: 2 workers, 0.5 MB up, 0.0 MB down"]
