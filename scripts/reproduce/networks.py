"""What masters=1,2,4 make of the links between hosts, beside torch's gloo: docs/results.md, "Several masters beside
torch's gloo".

    python scripts/reproduce/networks.py small      0.35 M floats, two hosts and four, cables of three speeds
    python scripts/reproduce/networks.py large      61 M floats, four hosts, cables of 1 Gbit/s; 10 GiB of memory

Hosts are network namespaces of this machine (tests/machines.py), so whoever calls it must be allowed to make some.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from machines import Machines  # noqa: E402

NET = ["dataset=synthetic", "model=convnet7", "workers=1"]
ALEXNET = [
    "dataset=synthetic", "dataset.shape=[3,256,256]", "dataset.crop=221", "dataset.classes=1000", "dataset.train=64",
    "dataset.test=64", "model=convnet11", "workers=1",
]  # fmt: skip
RUNS = {
    "small": [(hosts, rate, NET) for hosts in (2, 4) for rate in ("none", "1gbit", "100mbit")],
    "large": [(4, "1gbit", ALEXNET)],
}


def measured(hosts: int, rate: str, words: list[str]) -> None:
    machines, directory = Machines(hosts), Path(tempfile.mkdtemp(prefix="networks-"))
    of = {"env": {**os.environ, "EASGD_SECRET": "of these hosts"}, "cwd": directory}
    easgd, out = [sys.executable, "-m", "easgd_cli"], directory / "found.json"
    try:
        if rate != "none":
            machines.limit(rate)
        first, *others = machines.hosts
        words = [f"launcher.address={first.address}:0", f"launcher.masters_here={4 // hosts}", "masters=1,2,4", *words]
        words += ["--hosts", str(len(others)), "--gloo", "--windows", "3", "--json", str(out)]
        print(
            f"\n{hosts} hosts, {rate}, load {os.getloadavg()[0]:.1f}: easgd bench network {' '.join(words)}", flush=True
        )
        began, log = time.monotonic(), directory / "bench"
        bench = first.start([*easgd, "bench", "network", *words], log, **of)
        while not (where := re.search(r"easgd join (\S+)", log.read_text())) and bench.poll() is None:
            time.sleep(0.1)
        for i, host in enumerate(others if where else []):
            host.start([*easgd, "join", where[1]], directory / f"join{i}", **of)
        if bench.wait():
            sys.exit(log.read_text())
        print(*re.findall(r"^.*exchanges of.*$", log.read_text(), re.MULTILINE), sep="\n")
        for row in json.loads(out.read_text()):
            ratio = f"{row['ratio']:.2f} ({row['least']:.2f} to {row['greatest']:.2f})"
            print(f"{row['what']}: {row['figure']:.4g} MB/s; {row['peer_name']}: {row['peer']:.4g}; {ratio}")
        print(f"{time.monotonic() - began:.0f} s", flush=True)
    finally:
        machines.close()


def main(argv: list[str]) -> None:
    for which in argv or [*RUNS]:
        try:
            for of in RUNS[which]:
                measured(*of)
        except (KeyError, PermissionError, subprocess.SubprocessError) as e:
            sys.exit(f"{which}: {e!r}")


if __name__ == "__main__":
    main(sys.argv[1:])
