"""A center whose masters are on different machines (launcher.masters_here): network namespaces, as in
test_distributed.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from machines import Machines
from test_distributed import ended, log, machines, replayed, start, summary, train, where  # noqa: F401

K2 = ["masters=2", "launcher.masters_here=1"]


def test_two(machines: Callable[[int], Machines], tmp_path: Path) -> None:  # noqa: F811
    of = machines(2)
    a, b = of.hosts
    run = train(a, tmp_path, "workers=3", "launcher.here=1", *K2, "algo=eamsgd", "tau=5", "steps=60")
    try:
        joined = start(b, tmp_path, "join", "join", where(tmp_path), "workers=2")
        assert (ended(run, tmp_path, "train"), ended(joined, tmp_path, "join")) == (0, 0)
    finally:
        for f in (*tmp_path.glob("*.txt"), *(tmp_path / "run" / "logs").glob("*.log")):
            print("==", f.name, f.read_text()[-1500:])
    print(summary(tmp_path))
    replayed(tmp_path)


@pytest.fixture(autouse=True)
def _show(request, tmp_path):
    yield
    for f in (*tmp_path.glob("*.txt"), *(tmp_path / "run" / "logs").glob("*.log")):
        print("==", f.name, f.read_text()[-2500:])
