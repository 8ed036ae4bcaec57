"""Parties that stand still: the user is told when a party's silence begins and when it ends."""

from __future__ import annotations

from easgd_cli.launcher.journal.journal import Journal
from easgd_cli.launcher.supervisor.parties import Party, title, title_in_files
from easgd_cli.training.snapshot import Moment


class Stalls:
    """The parties that say nothing, and for how many seconds each has said nothing."""

    def __init__(self, journal: Journal):
        self._journal = journal
        self._seconds: dict[Party, float] = {}

    def __contains__(self, party: Party) -> bool:
        return party in self._seconds

    def lasts(self, party: Party, seconds: float, stopped: bool, moment: Moment) -> None:
        """Notes that the party has said nothing for so long; `stopped`: a signal keeps its process from running."""
        new = party not in self._seconds
        self._seconds[party] = seconds
        self._show()
        if new:
            why = ": its process is stopped, and SIGCONT lets it go on" if stopped else ""
            self._journal.note(f"{_said(party, seconds)}{why}")
            self._journal.system(moment, silent=title_in_files(party), silent_seconds=round(seconds, 1))

    def ends(self, party: Party, moment: Moment) -> None:
        """Notes that the party goes on."""
        if (seconds := self._seconds.pop(party, None)) is not None:
            self._show()
            self._journal.note(f"{title(party)} goes on after {seconds:.0f} s of silence")
            self._journal.system(moment, goes_on=title_in_files(party), silent_seconds=round(seconds, 1))

    def drop(self, party: Party) -> None:
        """Forgets the party, which has ended."""
        if self._seconds.pop(party, None) is not None:
            self._show()

    def _show(self) -> None:
        self._journal.progress.silent(_said(party, seconds) for party, seconds in self._seconds.items())


def _said(party: Party, seconds: float) -> str:
    return f"{title(party)} has said nothing for {seconds:.0f} s"
