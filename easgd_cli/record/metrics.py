"""The metrics of workers and of the run, with one sentence each: shown by TensorBoard beside the curve and in
docs/metrics.md.

A row may hold other values, which metrics.jsonl records and TensorBoard does not plot, except for what a problem
measures of the center.
"""

from __future__ import annotations

from typing import Any

# {"seconds", "step", "exchanges", "party", then metrics by bare name: a number, None (not finite) or a text}
Row = dict[str, Any]
MOMENT = ("seconds", "step", "exchanges", "party")

# parties with a row at every evaluation of a snapshot, of what the problem declares (problems/metric.py)
MEASURED = ("center", "average")

PARTS = ("compute", "data", "communication", "other")  # of a worker's seconds

# Of each worker, at fixed local steps.
WORKER = {
    "train_loss": "Mean loss of the worker's batches since the last point, at its own parameters, dropout, smoothing "
    "and noise on, without the l2 term.",
    "distance_to_center": "Euclidean distance between the worker's parameters and the center it was last told.",
    "staleness": "Updates of the center by others between two exchanges of the worker, the mean since the last point.",
    "eta": "Learning rate at the worker's clock.",
    "samples_per_second": "Samples that the worker has differentiated a second since the last point, all waiting "
    "included.",
    "seconds_compute": "Seconds of the worker's step loop spent on gradients, since the start.",
    "seconds_data": "Seconds of the worker's step loop spent on making batches, since the start.",
    "seconds_communication": "Seconds the worker's step loop itself spent sending, waiting and pulling, since the "
    "start.",
    "seconds_other": "The remaining seconds of the worker's step loop, since the start: its update, above all.",
}

# Of the run as a whole.
SYSTEM = {
    "workers_alive": "Workers that have not been lost, or have come back.",
    "restarts": "How often workers or the master have been started again, so far.",
    "steps_lost": "Steps of a worker that came back whose work never reached the center.",
    "steps_missed": "Steps that its clock left out, since the others' round had gone on.",
    "master_cpu_seconds": "CPU seconds the master, or all masters, have used since their start.",
    "exchanges_per_second": "Exchanges the master has served a second since the last point.",
    "spread": "Root mean square distance of the workers' variables from their mean, which is evaluated where there is "
    "no center.",
    "queue_seconds": "Virtual seconds that messages waited for the master, the mean since the start (simulated).",
    "master_busy": "Share of the virtual time in which the master was serving so far, in percent (simulated).",
}

# Of the link to one host, in rows of the system that name it, `host`.
LINK = {
    "link_bytes_up": "Bytes of vectors that have come from the host, since the command began.",
    "link_bytes_down": "Bytes of vectors that have gone to the host, since the command began.",
    "link_seconds_up": "Seconds in which bytes were on their way from the host, of all its connections together.",
    "link_seconds_down": "Seconds in which bytes were on their way to the host, of all its connections together.",
    "link_share_up": "What came from the host since the last point, of what its link carried when it was measured at "
    "the host's arrival, in percent.",
    "link_share_down": "What went to the host since the last point, of what its link carried when it was measured at "
    "the host's arrival, in percent.",
    "link_silent": "Seconds since anything was heard of the host.",
}

PARTIES = (*MEASURED, "system")  # all other parties are workers

# A curve of a worker or the system begins at step 0 with the value 0, since nothing has been spent or done there; the
# curves of these metrics begin with their first value.
BEGIN_WITH_THEIR_FIRST = {"train_loss", "eta"}


def measured(row: Row) -> list[str]:
    """Returns the names of the values in a row of center or average, in the problem's order."""
    return [name for name in row if name not in MOMENT]


def worker_name(number: int) -> str:
    """Returns a worker's name in rows, tags and log files: two digits or more, so that names sort as numbers do."""
    return f"worker_{number:02d}"
