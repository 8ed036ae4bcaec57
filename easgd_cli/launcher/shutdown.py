"""The end of training: workers are told to stop, and those that do not are not waited for."""

from __future__ import annotations

from collections.abc import Callable

from easgd_cli.launcher.journal import Journal
from easgd_cli.launcher.members import Member, Members
from easgd_cli.launcher.parties import MASTER, Command, GiveUpWorker, Kill, Patience, Stop


class Shutdown:
    """Since when workers have been told to stop, and who has been killed since. `patience`: None where nobody can be
    silent.
    """

    def __init__(self, journal: Journal, members: Members, ask: Callable[[Command], None], patience: Patience | None):
        self._journal, self._members, self._ask, self._patience = journal, members, ask, patience
        self._since: float | None = None
        self._master_killed = False

    @property
    def begun(self) -> bool:
        return self._since is not None

    def begin(self, now: float) -> None:
        """Tells those that train, once."""
        if self._since is None:
            self._since = now
            for worker in self._members.away:  # nobody waits for one to come back that would only end
                self._members[worker].away = False
                self._ask(Kill(worker))
                self._ask(GiveUpWorker(worker))
            if live := self._members.live:
                self._ask(Stop(live))

    def keep_time(self, now: float, awaited: Callable[[Member], bool], master_awaited: bool) -> None:
        """Ends those that have not stopped within their time, as an end must not wait for ever."""
        if self._patience is None or self._since is None:
            return
        waited, grace = now - self._since, self._patience.interrupted
        patience = grace if self._journal.signal is not None else self._patience.usual
        for i, m in self._members.items():
            if waited > patience and awaited(m) and not m.silent:
                self._journal.note(
                    f"worker {i} has not finished its step within {patience:g} s; the run ends without it"
                )
                m.silent = True
                self._ask(Kill(i))
        if waited > patience + grace and master_awaited and not self._master_killed and not self._members.live:
            self._master_killed = True  # it has had its time after the last of them; its end is told as any master's
            self._ask(Kill(MASTER))
