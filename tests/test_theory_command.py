"""`easgd theory`: what is asked for, printed and written; mistakes; pictures."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Said

from easgd_cli import picture
from easgd_cli.commands import configs
from easgd_cli.theory import moments
from easgd_cli.theory.settings import STUDIES, Figure5
from easgd_cli.theory.studies import figure5


def rows(path: Path, table: str) -> list[dict]:
    return json.loads(path.read_text())["tables"][table]


def run_python(code: str, cwd: Path) -> None:
    """In a process of its own, where nothing has been imported yet."""
    environment = {**os.environ, "PYTHONPATH": str(configs.directory().parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("undrawn")
def test_a_point_of_the_users_own(easgd, here: Path) -> None:
    """E, V and MSE against the linear system of 7 workers and the center, iterated here."""
    said: Said = easgd("theory", "moments", "p=7", "eta=0.3", "beta=0.5", "h=2", "sigma=3", "t=17", "seeds=2000")
    assert said.status == 0
    alpha, noise, mean, cov = 0.5 / 7, np.diag([0.9**2] * 7 + [0.0]), np.ones(8), np.zeros((8, 8))
    m = np.diag([1 - alpha - 0.6] * 7 + [0.5])
    m[:7, 7] = m[7, :7] = alpha
    for _ in range(17):
        mean, cov = m @ mean, m @ cov @ m.T + noise
    [row] = rows(here / "runs/theory/moments.json", "moments")
    assert (row["mean"], row["variance"]) == pytest.approx((mean[7], cov[7, 7]), rel=1e-9)
    assert f"{cov[7, 7]:.7g}" in said.out and f"{mean[7]:.7g}" in said.out
    assert abs(row["mean_in_se"]) < 4 and abs(row["variance_in_se"]) < 4
    [limit] = rows(here / "runs/theory/moments.json", "limits")
    assert limit["radius"] == pytest.approx(np.abs(np.linalg.eigvals(m)).max(), rel=1e-9)
    assert limit["stable"] == "yes"


@pytest.mark.usefixtures("undrawn")
def test_alpha_in_place_of_beta_and_several_values(easgd, here: Path) -> None:
    assert easgd("theory", "moments", "p=4,8", "alpha=0.1", "eta=0.2", "t=2,inf", "seeds=0", "--out", "a").status == 0
    found = [(row["p"], round(row["beta"], 12), row["t"]) for row in rows(here / "a/moments.json", "moments")]
    assert found == [(4, 0.4, 2), (4, 0.4, "inf"), (8, 0.8, 2), (8, 0.8, "inf")]


@pytest.mark.usefixtures("undrawn")
def test_a_divergent_point_is_a_result(easgd, here: Path) -> None:
    said: Said = easgd("theory", "moments", "p=1", "eta=1.9", "beta=0.9", "t=3,inf", "seeds=1000")
    assert said.status == 0
    assert "p=1 eta=1.9 beta=0.9: diverges" in said.out
    finite, limit = rows(here / "runs/theory/moments.json", "moments")
    assert finite["variance"] > 0 and limit["variance"] is None


@pytest.mark.usefixtures("undrawn")
def test_a_rate_that_the_algorithm_refuses_is_computed_and_not_simulated(easgd) -> None:
    said: Said = easgd("theory", "moments", "p=1", "eta=0.1", "beta=1.5", "t=3", "seeds=1000")
    assert said.status == 0 and "not simulated" in said.out


@pytest.mark.usefixtures("undrawn")
def test_a_radius_at_a_point_of_the_users_own(easgd, here: Path) -> None:
    assert easgd("theory", "roundrobin", "p=4", "eta=0.004", "rho=1.5", "rounds=100", "points=5").status == 0
    state = np.eye(9)
    for i in range(4):  # the printed rules on all unit vectors at once
        state[2 * i] -= state[2 * i + 1] - state[8]
        state[2 * i + 1] = (0.996 * state[2 * i + 1] + 0.006 * (state[2 * i] + state[8])) / 1.006
        state[8] = (state[1:8:2] - state[0:8:2]).mean(0)
    assert (
        easgd("theory", "roundrobin", "p=2", "eta=0.5", "alpha=0.9", "points=5", "rounds=10", "--out", "a").status == 0
    )
    first, second = [[-0.4, 0, 0.9], [0, 1, 0], [0.9, 0, 0.1]], [[1, 0, 0], [0, -0.4, 0.9], [0, 0.9, 0.1]]
    [radius] = [
        row["radius_of_a_round"] for row in rows(here / "a/roundrobin.json", "radii") if row["method"] == "EASGD"
    ]
    assert radius == pytest.approx(np.abs(np.linalg.eigvals(np.array(second) @ first)).max(), rel=1e-9)
    table = {row["method"]: row for row in rows(here / "runs/theory/roundrobin.json", "radii")}
    assert table["ADMM"]["radius_of_a_round"] == pytest.approx(np.abs(np.linalg.eigvals(state)).max(), rel=1e-9)


SMALL = {
    "moments": ["p=2", "eta=0.2", "t=1,5,inf", "seeds=1000"],
    "figure5": ["points=8"],
    "figure1": ["points=6"],
    "roundrobin": ["points=6", "rounds=200"],
    "doublewell": ["rho=0.3,0.8", "rounds=300"],
    "family": ["points=10", "seeds=1000", "p=2"],
}


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_writes_numbers_and_pictures(study: str, easgd, here: Path) -> None:
    assert easgd("theory", study, *SMALL[study], "--out", "one").status == 0
    names = sorted(p.name for p in (here / "one").iterdir())
    assert f"{study}.json" in names and not any(n.startswith(".") for n in names)
    assert {Path(n).suffix for n in names} == {".json", ".csv", ".png", ".svg"}
    for name in names:
        if name.endswith(".svg"):
            assert "<dc:date>" not in (here / "one" / name).read_text()
        if name.endswith(".csv"):
            with (here / "one" / name).open(newline="") as file:
                table = list(csv.reader(file))
            assert len(table) > 1 and all(len(row) == len(table[0]) for row in table)
            assert "nan" not in {cell for row in table for cell in row}


def test_a_study_made_again_is_the_same_to_the_byte(easgd, here: Path) -> None:
    for out in ("one", "two"):
        assert easgd("theory", "moments", *SMALL["moments"], "--out", out).status == 0
    for path in (here / "one").iterdir():
        assert path.read_bytes() == (here / "two" / path.name).read_bytes(), path.name


def test_figure5_covers_the_papers_grid() -> None:
    [grid] = figure5.study(Figure5(points=3)).grids
    table = [dict(zip(grid.columns, row, strict=True)) for row in grid.rows]
    assert len(table) == 5 * 5 * 9
    assert {row["p"] for row in table} == {1, 10, 100, 1000, 10_000} and {row["t"] for row in table} == {
        1,
        2,
        10,
        100,
        np.inf,
    }
    assert all(row["log10_mse"] == 0 for row in table if row["t"] == 1)  # V = 0, E = 1
    at = {(row["p"], row["t"], row["eta"], row["beta"]): row["log10_mse"] for row in table}
    assert at[1, np.inf, 1.5, 1.5] == np.inf
    assert at[1000, 10, 0.5, 1.0] == pytest.approx(np.log10(moments.center(10, 1000, 0.5, 1.0, 1, 10).mse), rel=1e-5)


def test_without_a_name_every_study_is_made(easgd, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    from easgd_cli.commands import theory
    from easgd_cli.theory.studies.study import Study

    class Module:
        def __init__(self, name: str):
            self.name = name.rpartition(".")[2]

        def study(self, settings: object) -> Study:
            made.append(self.name)
            return Study(self.name, settings, [], [], {})

    monkeypatch.setattr(theory.importlib, "import_module", Module)
    assert theory.main([]) == theory.main(["all", "--out=elsewhere"]) == 0
    assert made == [*STUDIES, *STUDIES]
    assert sorted(p.name for p in (here / "elsewhere").iterdir()) == sorted(f"{name}.json" for name in STUDIES)


MISTAKES = [
    ("moments eta=ten", ["eta=ten", "learning rate", "is not a number"]),
    ("moments p=0", ["p=0", "workers", "must be from 1"]),
    ("moments p=1.5", ["p=1.5", "is not a whole number"]),
    ("moments eta=0", ["eta=0", "must be greater than 0"]),
    ("moments eta=nan", ["eta=nan", "must be finite"]),
    ("moments h=1e10", ["h=1e10", "must be between -1e9 and 1e9"]),
    ("doublewell eta=1 rho=3,0.5", ["eta=1 rho=3", "choose a smaller eta"]),
    ("moments sigma=-1", ["sigma=-1", "must be at least 0"]),
    ("moments t=soon", ["t=soon", "is not a whole number"]),
    ("moments t=1,,2", ["t=1,,2", "is not a whole number"]),
    ("moments sigam=1", ["sigam=1", "moments has no setting sigam", "did you mean sigma?"]),
    ("moments zzz=1", ["zzz=1", "there are: p, eta"]),
    ("moments eta", ["eta: settings are written key=value"]),
    ("moments eta=1 eta=2", ["eta is given twice"]),
    ("moments alpha=0.1 beta=0.9", ["alpha and beta are both given", "give one"]),
    ("figure1 p=31", ["p=31", "from 1 to 30"]),
    ("figure5 p=3", ["figure5 has no setting p"]),
    ("figure6", ["theory figure6: there is no such study", "did you mean figure"]),
    ("zzz", ["there are: moments"]),
    ("p=7", ["p=7: settings belong to one study", "easgd theory moments p=7"]),
    ("all p=7", ["p=7: settings belong to one study"]),
    ("moments --output x", ["--output: there is no such option"]),
    ("moments --out", ["--out: names no directory"]),
    ("moments --out /dev/null/x", ["--out /dev/null/x: nothing can be written there", "choose another"]),
]


@pytest.mark.parametrize(("words", "parts"), MISTAKES, ids=[w for w, _ in MISTAKES])
def test_a_mistake_is_one_sentence(words: str, parts: list[str], easgd, here: Path) -> None:
    said: Said = easgd("theory", *shlex.split(words))
    assert said.status == 2
    assert all(part in said.err for part in parts), said.err
    assert said.err.startswith("easgd: ") and len(said.err.splitlines()) == 1 and said.out == ""
    assert list(here.iterdir()) == []


def test_help_names_every_study_and_setting_and_loads_nothing_heavy(easgd, here: Path) -> None:
    text = easgd("theory", "--help").out
    for name, kind in STUDIES.items():
        assert f"  {name}" in text and all(f"      {key}=" in text for key in kind.__dataclass_fields__)
    code = (
        "import sys; from easgd_cli.__main__ import main\n"
        "assert main(['theory', '--help']) == 0 and main(['theory', 'moments', 'p=0']) == 2\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'hydra'} & set(sys.modules)\n"
    )
    run_python(code, here)


def test_pictures_need_no_pyplot_and_ignore_the_users_style(here: Path) -> None:
    code = (
        "import matplotlib, sys; matplotlib.rcParams['font.size'] = 30\n"
        "from easgd_cli import picture\nfrom easgd_cli.theory.studies import figure1\n"
        "from easgd_cli.theory.settings import Figure1\n"
        "from pathlib import Path\n"
        "with picture.style():\n"
        "    figure1.study(Figure1(points=4)).write(Path('.'))\n"
        "assert matplotlib.rcParams['font.size'] == 30 and 'matplotlib.pyplot' not in sys.modules\n"
    )
    run_python(code, here)
    with picture.style():
        assert picture.matplotlib.rcParams["font.size"] == 8
