"""TensorBoard's pages beside curves: descriptions of curves, the Custom Scalars page, texts, hyperparameters."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping, Sequence

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

from easgd_cli.problems.metric import SECONDS_TO_BEST, TRAIN_LOSS, Metrics
from easgd_cli.record.metrics import LINK, SYSTEM, WORKER

Value = str | float | int | bool | None  # of a hyperparameter; None: a number that this run's method does not use

# Columns of the HParams table by which runs are compared, beside their metrics.
_COMPARED = {
    "workers/samples_per_second_mean": "samples/s per worker",
    "workers/seconds_communication_mean": "seconds of communication",
}


def about(tag: str, metrics: Metrics) -> SummaryMetadata:
    """Returns the page's description of a curve, to be sent with the tag's first value alone."""
    return SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"), summary_description=_description(tag, metrics)
    )


def _description(tag: str, metrics: Metrics) -> str:
    group, _, name = tag.partition("/")
    if group == "workers":
        metric, _, kind = name.rpartition("_")
        word = {"mean": "Mean", "min": "Least", "max": "Greatest"}[kind]
        return f"{word} over the workers at the same local step: {WORKER[metric]}"
    if group == "average":
        return f"The same for the average of the center: {metrics[name].description}"
    if group in ("center", "system"):
        return metrics[name].description if group == "center" else SYSTEM[name]
    return {**LINK, **WORKER}[group]


def text(tag: str, markdown: str) -> Summary.Value:
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary.Value(tag=tag, tensor=_strings([markdown.encode()]), metadata=metadata)


def _strings(values: Sequence[bytes]) -> TensorProto:
    # The page shows a text only if the tensor has a dimension.
    return TensorProto(
        dtype=DT_STRING, tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(values))]), string_val=values
    )


_PARTS = {
    "compute": "seconds of compute",
    "data": "seconds of data",
    "communication": "seconds of communication",
    "other": "other seconds",
}


def _lines(title: str, *tags: str) -> layout_pb2.Chart:
    return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag}$" for tag in tags]))


def _range_of(title: str, metric: str) -> layout_pb2.Chart:
    series = layout_pb2.MarginChartContent.Series(
        value=f"workers/{metric}_mean", lower=f"workers/{metric}_min", upper=f"workers/{metric}_max"
    )
    return layout_pb2.Chart(title=f"{title}: mean and range", margin=layout_pb2.MarginChartContent(series=[series]))


def layout(plotted: Collection[str], metrics: Metrics) -> Summary.Value:
    """Returns the Custom Scalars page: every chart for which there are curves. `plotted`: the tags of all curves.

    The page joins the layouts of all runs that it shows, category by category, and would draw a chart without curves as
    an empty frame.
    """

    tags = "\n".join(plotted)  # in one text, so that one search covers the many tags of all workers

    def drawn(chart: layout_pb2.Chart) -> bool:
        if chart.HasField("margin"):
            return all(series.value in plotted for series in chart.margin.series)
        return all(re.search(wanted, tags, re.MULTILINE) for wanted in chart.multiline.tag)

    charts = _charts(metrics)
    # The page shows a category's line charts first, then those with a range, in reverse order.
    categories = {
        "The center": [_lines(title, f"center/{metric}") for metric, title in charts.items()],
        "The center and its average": [
            _lines(title, f"center/{metric}", f"average/{metric}") for metric, title in charts.items()
        ],
        "The workers": [
            _lines("training loss of every worker", "train_loss/worker_.*"),
            _range_of("staleness", "staleness"),
            _range_of("distance to the center", "distance_to_center"),
            _lines("spread of the workers around their mean", "system/spread"),
            _range_of("training loss", "train_loss"),
        ],
        "Where the time goes": [
            _lines("where a worker's seconds go: mean", *(f"workers/seconds_{part}_mean" for part in _PARTS)),
            *(_range_of(title, f"seconds_{part}") for part, title in reversed(_PARTS.items())),
        ],
        "Speed": [
            _lines("exchanges a second", "system/exchanges_per_second"),
            _lines("workers alive", "system/workers_alive"),
            _lines("master busy (%)", "system/master_busy"),
            _lines("seconds a message waits for the master", "system/queue_seconds"),
            _range_of("samples a second of a worker", "samples_per_second"),
        ],
        "The links to hosts": [
            _lines("share of the link used, from the host (%)", "link_share_up/.*"),
            _lines("share of the link used, to the host (%)", "link_share_down/.*"),
            _lines("seconds since anything was heard of the host", "link_silent/.*"),
        ],
    }
    shown = {title: [chart for chart in charts if drawn(chart)] for title, charts in categories.items()}
    told = layout_pb2.Layout(
        category=[layout_pb2.Category(title=title, chart=charts) for title, charts in shown.items() if charts]
    )
    return Summary.Value(
        tag=custom_scalars.CONFIG_SUMMARY_TAG,
        tensor=_scalar_string(told.SerializeToString()),
        metadata=custom_scalars.create_summary_metadata(),
    )


def _charts(metrics: Metrics) -> dict[str, str]:
    """Returns the titles of the center's charts by metric: the primary metric and its best, the others, losses last."""
    primary = [metrics.primary, metrics.primary.best] if metrics.primary is not None else []
    losses = [TRAIN_LOSS, *(m for m in metrics.declared if m.name.endswith("_loss"))]
    others = [m for m in metrics.declared if m not in (*primary, *losses)]
    return {m.name: m.labelled for m in (*primary, *others, *losses)}


def _compared(metrics: Metrics) -> dict[str, str]:
    """Returns the headings of the HParams table's columns that are not settings, by tag."""
    primary = metrics.primary
    if primary is not None:
        of_center = {
            primary.best.name: primary.best.labelled,
            primary.name: f"final {primary.labelled}",
            SECONDS_TO_BEST.name: SECONDS_TO_BEST.title,
        }
    else:
        of_center = {m.name: f"final {m.labelled}" for m in metrics.declared}
    of_center |= {TRAIN_LOSS.name: f"final {TRAIN_LOSS.title}"}
    return {f"center/{name}": heading for name, heading in of_center.items()} | _COMPARED


def _scalar_string(value: bytes) -> TensorProto:
    return TensorProto(dtype=DT_STRING, tensor_shape=TensorShapeProto(), string_val=[value])


def session_start(hparams: Mapping[str, Value], name: str, started: float) -> Summary.Value:
    info = SessionStartInfo(group_name=name, start_time_secs=started)
    for key, value in hparams.items():
        if isinstance(value, bool):
            info.hparams[key].bool_value = value
        elif isinstance(value, int | float):
            info.hparams[key].number_value = value
        elif value is not None:
            info.hparams[key].string_value = value
    return _hparams(hparams_metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=info))


def session_end(failed: bool) -> Summary.Value:
    status = api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS
    return _hparams(
        hparams_metadata.SESSION_END_INFO_TAG,
        HParamsPluginData(session_end_info=SessionEndInfo(status=status, end_time_secs=time.time())),
    )


def _hparams(tag: str, content: HParamsPluginData) -> Summary.Value:
    return Summary.Value(
        tag=tag, tensor=hparams_metadata.NULL_TENSOR, metadata=hparams_metadata.create_summary_metadata(content)
    )


def experiment(runs: Sequence[Mapping[str, Value]], metrics: Sequence[Metrics], domains: bool) -> Summary.Value:
    """Returns the columns of the HParams table: settings, and the values by which runs are compared.

    `domains`: whether `runs` are all that there will be. Then the columns are only those settings that differ between
    runs that use them, with the values to choose from. Common settings are on the Text page; as columns they would push
    the useful ones out of sight.
    """
    found = {
        name: [value for run in runs if (value := run.get(name)) is not None]
        for name in dict.fromkeys(key for run in runs for key in run)
    }
    differing = {name: values for name, values in found.items() if len(set(values)) > 1}
    infos = []
    for name, values in ((differing or found) if domains else found).items():
        info = api_pb2.HParamInfo(name=name, differs=name in (differing if domains else _FIRST))
        if values and all(isinstance(v, bool) for v in values):
            info.type = api_pb2.DATA_TYPE_BOOL
        elif all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            info.type = api_pb2.DATA_TYPE_FLOAT64
        else:
            info.type = api_pb2.DATA_TYPE_STRING
            values = [str(v) for v in values]
        for value in sorted(set(values)) if domains else ():
            info.domain_discrete.values.add(**{_FIELDS[info.type]: value})
        infos.append(info)
    columns = {
        tag: (title, _description(tag, measured)) for measured in metrics for tag, title in _compared(measured).items()
    }
    infos_of_metrics = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(group="", tag=tag), display_name=title, description=said)
        for tag, (title, said) in columns.items()
    ]
    content = api_pb2.Experiment(time_created_secs=time.time(), hparam_infos=infos, metric_infos=infos_of_metrics)
    return _hparams(hparams_metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=content))


# The settings that the table shows first for runs that belong to no sweep: it opens with five columns, and those marked
# as differing come first.
_FIRST = ("algo", "dataset", "eta", "tau", "workers")
_FIELDS = {
    api_pb2.DATA_TYPE_BOOL: "bool_value",
    api_pb2.DATA_TYPE_FLOAT64: "number_value",
    api_pb2.DATA_TYPE_STRING: "string_value",
}
