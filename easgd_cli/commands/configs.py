"""The shipped configurations: their options, settings, defaults and tuned rates. Reads text, imports nothing heavy."""

from __future__ import annotations

import re
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from easgd_cli.settings import schema
from easgd_cli.settings.shipped import directory as directory

GROUPS = (*schema.GROUPS, "experiment")  # the groups of which users choose an option
_CLASSIFICATION = "easgd_cli.problems.tasks.classification:Classification"


def options(group: str) -> dict[str, str]:
    """Returns the options of a group, each with the first comment of its file."""
    return {p.stem: _headline(p) for p in sorted((directory() / group).glob("*.yaml"))}


def settings(group: str, option: str) -> dict[str, tuple[str, str]]:
    """Returns the settings that an option adds to its group, each with its value and the comment on its line."""
    text = (directory() / group / f"{option}.yaml").read_text(encoding="utf-8")
    if group == "experiment":  # an experiment has no settings of its own, it sets those of other groups
        return {}
    if text.startswith("# @package _global_"):  # sets other groups' settings, too; its own are in its group's section
        section = re.search(rf"^{group}:\n((?:  .*\n?)*)", text, re.MULTILINE)
        text = textwrap.dedent(section[1]) if section else ""
    found = {
        m[1]: (m[2].strip(), (m[3] or "").strip())
        for m in re.finditer(r"^(\w+):([^#\n]*)(?:#(.*))?$", text, re.MULTILINE)
    }
    given = {key for key, (value, _) in found.items() if key in ("name", "target", "defaults") and value != "???"}
    return {key: (value.replace("???", ""), what) for key, (value, what) in found.items() if key not in given}


def defaults() -> dict[str, str | None]:
    """Returns each group of the root configuration with its default option."""
    entries = yaml.safe_load((directory() / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = {
        key: value for entry in entries if isinstance(entry, dict) for key, value in entry.items() if " " not in key
    }
    return dict(sorted(chosen.items(), key=lambda item: GROUPS.index(item[0])))


def untuned(algo: str, local: str, workers: int) -> dict[str, Any]:
    """Returns the values with which one of easgd's own methods starts on a data set without tuned rates: eta,
    default_steps, how often it is evaluated, and for some delta; nothing for a user's method.
    """
    table = _table()
    rows, steps = table["untuned"], table["local"]
    method = table["same_as"].get(algo, algo)
    row = rows["all"] | rows.get(method, {}) if method in rows else {}
    of_step = steps.get(local, {})
    row |= rows[of_step] if isinstance(of_step, str) else of_step
    if "eta" not in row:
        return {}
    if row.pop("shared", False):
        row["eta"] /= workers
    return row


def started_with(
    algo: str, local: str, dataset: str, workers: int, lacking: set[str], given: set[str]
) -> dict[str, Any]:
    """Returns, by dotted names, the values with which a method starts on a data set without tuned rates: those that are
    `lacking`, and delta together with eta. Settings that the user has `given` are left out.
    """
    if tuned(algo, dataset) or not (row := untuned(algo, local, max(workers, 1))):
        return {}
    found = {"eta": row["eta"], "default_steps": row["default_steps"], "eval.every": row["eval"]["every"]}
    found = {key: value for key, value in found.items() if key in lacking and (key == "eta" or key not in given)}
    if "eta" in found and "delta" in row and "delta" not in given:
        found["delta"] = row["delta"]
    return found


def tuned(algo: str, dataset: str) -> bool:
    """Returns whether tuning.yaml has rates for the method on that data set."""
    return ("tuning/table", f"{algo}_{dataset}") in tuning()


@cache
def _table() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((directory() / "tuning.yaml").read_text(encoding="utf-8"))
    return read


@cache
def tuning() -> dict[tuple[str, str], dict[str, Any]]:
    """Returns the rows of tuning.yaml by Hydra's group and name: tuning/table/METHOD_DATASET for each method and data
    set, tuning/local/STEP_DATASET for each local step and data set, tuning/experiment/EXPERIMENT_METHOD for each
    experiment and method.
    """
    table = dict(_table())
    same_as, steps, _ = table.pop("same_as"), table.pop("local"), table.pop("untuned")
    rows: dict[tuple[str, str], dict[str, Any]] = {
        ("tuning/experiment", f"{experiment}_{method}"): row
        for experiment, methods in table.pop("experiment").items()
        for method, row in methods.items()
    }
    for dataset, methods in table.items():
        of_steps = steps | methods.get("local", {})
        for method in sorted({*methods, *same_as} - {"all", "local"}):
            own = methods.get(method, {})  # goes over a row that it shares with another method
            rows["tuning/table", f"{method}_{dataset}"] = methods["all"] | methods[same_as.get(method, method)] | own
        for step, row in of_steps.items():
            rows["tuning/local", f"{step}_{dataset}"] = methods[row] if isinstance(row, str) else row
    return rows


def shadowed(other: Path) -> list[str]:
    """Returns the files in `other` with the path of a shipped file. They are never read: Hydra finds ours first."""
    return sorted(
        str(p.relative_to(other)) for p in other.rglob("*.yaml") if (directory() / p.relative_to(other)).is_file()
    )


def _headline(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ").rstrip()
    return ""


def of_today(saved: Any) -> Any:
    """Returns a saved configuration by today's names: before tasks existed, `problem` had classification's settings."""
    problem = saved.get("problem") if isinstance(saved, dict) else None
    if not isinstance(problem, dict) or "task" in saved:
        return saved
    of_task = {key: problem[key] for key in ("label_smoothing", "top5") if key in problem}
    if not of_task or not str(problem.get("target")).startswith("easgd_cli."):
        return saved
    rest = {key: value for key, value in problem.items() if key not in of_task}
    return {**saved, "problem": rest, "task": {"name": "classification", "target": _CLASSIFICATION} | of_task}
