"""Which models and versions there are, how good they are, and what serves where: as data, text and a page.

``read`` asks the store once; the rest is made of what it returns. What serves where is what the
inventory declares (``models:``), beside what each host had running when it was last deployed
(``hosts/<name>.json`` in the store). What a rollback would do only the hosts know, so that is there
when somebody asked them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from html import escape
from typing import Any

from . import host_record, model_store, objects
from .errors import GroundcrewError

WHOLE, PUBLISHING, UNFINISHED = "whole", "being published", "unfinished"
MALFORMED, INCOMPLETE = "malformed", "incomplete"
LATEST = "latest"
_DEFAULT_METRIC = "accuracy"
_SHOWN_DIGITS = 12


# -- reading the store ---------------------------------------------------------------------------


def read(client: Any, bucket: str, hosts: Iterable[str]) -> dict[str, Any]:
    """What the store knows: {"versions": {model: {version: facts}}, "releases": {host: releases}}.

    Facts are {"state", "detail"} and, of what has a readable manifest, "manifest" and
    "manifest_sha256". Files are compared by size; releases are None where nothing is recorded.
    """
    listed: dict[tuple[str, str], dict[str, int]] = {}
    for entry in model_store.list_objects(client, bucket, "models/"):
        parts = entry.key.split("/", 3)
        if len(parts) == 4 and model_store.is_version(parts[2]):
            listed.setdefault((parts[1], parts[2]), {})[parts[3]] = entry.size
    found: dict[str, dict[str, Any]] = {}
    for (model, version), sizes in listed.items():
        start = f"models/{model}/{version}/"
        found.setdefault(model, {})[version] = _facts(client, bucket, start, sizes)
    return {
        "versions": found,
        "releases": {host: _releases(client, bucket, host) for host in hosts},
    }


def _facts(client: Any, bucket: str, start: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    stored = None
    if model_store.MANIFEST in sizes:
        stored = objects.get(client, bucket, start + model_store.MANIFEST)
    if stored is None:
        return _unpublished(client, bucket, start, sizes)
    try:
        manifest = model_store.parse_manifest(
            stored.data, f"s3://{bucket}/{start}{model_store.MANIFEST}"
        )
    except GroundcrewError as error:
        return {"state": MALFORMED, "detail": str(error)}
    wrong = [
        f"{name} has {sizes.get(name, 'no')} bytes, not {entry['size']}"
        for name, entry in manifest["files"].items()
        if sizes.get(name) != entry["size"]
    ]
    return {
        "state": INCOMPLETE if wrong else WHOLE,
        "detail": "; ".join([*wrong, "publish it under a new version"]) if wrong else "",
        "manifest": manifest,
        "manifest_sha256": hashlib.sha256(stored.data).hexdigest(),
    }


def _unpublished(client: Any, bucket: str, start: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    stored = None
    if model_store.CLAIM in sizes:
        stored = objects.get(client, bucket, start + model_store.CLAIM)
    if stored is None:
        return {"state": UNFINISHED, "detail": "a publisher ended; nothing of it is visible"}
    try:
        claim = json.loads(stored.data)
        detail = f"by {claim['owner']} since {claim['created']}"
    except (ValueError, TypeError, KeyError):
        detail = "by somebody whose claim cannot be read"
    return {"state": PUBLISHING, "detail": detail}


def _releases(client: Any, bucket: str, host: str) -> dict[str, str] | None:
    try:
        releases = host_record.read(client, bucket, host)["releases"]
        return {str(name): str(release) for name, release in releases.items()}
    except (ValueError, KeyError, AttributeError):
        return None


# -- choosing a version --------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """A version that is whole, and why higher ones were not taken."""

    version: str
    metrics: dict[str, Any]
    passed_over: list[str]


def choose(client: Any, bucket: str, model: str, version: str, full: bool) -> Chosen:
    """The version itself, or for "latest" the highest one, proven whole.

    ``full`` reads every file. Raises GroundcrewError when it is not, or there is none.
    """
    if version != LATEST:
        manifest, _digest = model_store.check_whole(client, bucket, model, version, full)
        return Chosen(version, manifest["metrics"], [])
    passed_over = []
    for candidate in reversed(model_store.versions(client, bucket, model)):
        try:
            manifest, _digest = model_store.check_whole(client, bucket, model, candidate, full)
        except GroundcrewError as error:
            passed_over.append(str(error))
            continue
        return Chosen(candidate, manifest["metrics"], passed_over)
    raise GroundcrewError(
        f"s3://{bucket} has no whole version of model {model}. Train and publish one. "
        + " ".join(passed_over)
    )


def metrics_of(client: Any, bucket: str, model: str, version: str) -> dict[str, Any] | None:
    """The metrics of a version; None when it is not in the store, or its manifest cannot be read."""
    try:
        manifest, _digest = model_store.read_manifest(client, bucket, model, version)
    except GroundcrewError:
        return None
    return dict(manifest["metrics"])


def compare_lines(
    before: str, old: Mapping[str, Any] | None, version: str, new: Mapping[str, Any]
) -> list[str]:
    """A line a version, with its metrics."""
    if before == version:
        return [f"version {version}: {_figures(new)}"]
    return [
        f"version {before}, now: {'not in the store' if old is None else _figures(old)}",
        f"version {version}, new: {_figures(new)}",
    ]


def _figures(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_figure(metrics[name])}" for name in sorted(metrics)) or "no metrics"


# -- the report ----------------------------------------------------------------------------------


def report(
    environment: str,
    store: Mapping[str, Any],
    variants: Sequence[Mapping[str, Any]],
    fleets: Mapping[str, Sequence[str]],
    rollbacks: Mapping[str, Sequence[Mapping[str, Any]]],
    now: datetime | None = None,
) -> dict[str, Any]:
    """{"ok", "checks", "environment", "created", "models"}, from what ``read`` returned.

    variants: those of all models, as expand_models gives them. fleets: name to hosts. rollbacks: host
    to what module container_release answered when it was asked, one result a model (its ``item``),
    what a rollback would do.
    """
    moment = now or datetime.now(timezone.utc)
    checks: list[dict[str, Any]] = []
    names = sorted({*store["versions"], *(str(variant["model"]) for variant in variants)})
    models = []
    for name in names:
        declared = [variant for variant in variants if variant["model"] == name]
        versions = store["versions"].get(name, {})
        rows = [
            _row(version, versions[version], declared, moment)
            for version in sorted(versions, key=int)
        ]
        gate: dict[str, Any] = next((row["gate"] for row in reversed(rows) if row["gate"]), {})
        models.append(
            {
                "name": name,
                "metric": _metric(rows, gate),
                "higher_is_better": gate.get("higher_is_better") is not False,
                "versions": rows,
                "live": [
                    _live(variant, fleets, store["releases"], rollbacks) for variant in declared
                ],
            }
        )
        checks += _checks(models[-1], versions)
    return {
        "ok": all(check["ok"] for check in checks),
        "checks": checks,
        "environment": environment,
        "created": objects.timestamp(moment),
        "models": models,
    }


def _row(
    version: str,
    facts: Mapping[str, Any],
    declared: Sequence[Mapping[str, Any]],
    now: datetime,
) -> dict[str, Any]:
    manifest = facts.get("manifest") or {}
    created, age = manifest.get("created"), None
    try:
        age = int((now - objects.parse_timestamp(str(created))).total_seconds())
    except ValueError:
        created = None
    weights = [variant["weight"] for variant in declared if str(variant["version"]) == version]
    return {
        "version": version,
        "state": facts["state"],
        "detail": facts["detail"],
        "weight": weights[0] if weights else None,
        "metrics": manifest.get("metrics") or {},
        "gate": _map(manifest.get("gate")),
        "data_sha256": _map(manifest.get("data")).get("sha256"),
        "created": created,
        "age_seconds": age,
        "duration_seconds": manifest.get("duration_seconds"),
        "framework": manifest.get("framework"),
        "code_revision": manifest.get("code_revision"),
        "image": manifest.get("image"),
        "environment_fingerprint": manifest.get("environment_fingerprint"),
        "manifest_sha256": facts.get("manifest_sha256"),
    }


def _map(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _metric(rows: Sequence[Mapping[str, Any]], gate: Mapping[str, Any]) -> str | None:
    """The metric to show first: the one that decided last, or accuracy, or any."""
    names = {name for row in rows for name in row["metrics"]}
    for name in (str(gate.get("metric")), _DEFAULT_METRIC, *sorted(names)):
        if name in names:
            return str(name)
    return None


def _live(
    variant: Mapping[str, Any],
    fleets: Mapping[str, Sequence[str]],
    releases: Mapping[str, Mapping[str, str] | None],
    rollbacks: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    model = str(variant["model"])
    return {
        "version": str(variant["version"]),
        "weight": variant["weight"],
        "fleet": str(variant["fleet"]),
        "hosts": [
            {
                "host": host,
                "recorded": _recorded(model, releases.get(host)),
                "rollback": _rollback(model, rollbacks.get(host)),
            }
            for host in fleets.get(str(variant["fleet"]), [])
        ],
    }


def _recorded(model: str, releases: Mapping[str, str] | None) -> list[str] | None:
    """The versions that ran on a host when it was last deployed; None when nothing is recorded."""
    if releases is None:
        return None
    pairs = (name.rpartition("-") for name in releases)
    return sorted(
        (version for of, _, version in pairs if of == model and version.isdecimal()), key=int
    )


def _rollback(model: str, answers: Sequence[Mapping[str, Any]] | None) -> str | None:
    """What a rollback would do on a host, in words; None when it was not asked, or did not answer."""
    for answer in answers or []:
        if answer.get("skipped"):
            continue
        if answer.get("item") == model:
            if answer.get("unreachable"):
                return "somewhere; the host did not answer"
            outcomes = answer.get("services") or []
            if outcomes:
                return f"to version {str(outcomes[0]['name']).rpartition('-')[2]}"
            said = str(answer.get("msg") or "the host did not say")
            return "nothing is kept" if "nothing to go back to" in said else said
    return None


def _checks(model: Mapping[str, Any], versions: Mapping[str, Any]) -> list[dict[str, Any]]:
    checks = [
        {
            "name": f"{model['name']} version {row['version']}",
            "ok": row["state"] not in (MALFORMED, INCOMPLETE),
            "detail": f"{row['state']}{': ' if row['detail'] else ''}{row['detail']}",
        }
        for row in model["versions"]
    ]
    wanted: dict[str, set[str]] = {}
    for live in model["live"]:
        state = versions.get(live["version"], {}).get("state", "not in the store")
        checks.append(
            {
                "name": f"{model['name']}-{live['version']} can be served",
                "ok": state == WHOLE,
                "detail": state
                if state == WHOLE
                else f"{state}; train and publish it, or declare another version",
            }
        )
        for host in live["hosts"]:
            wanted.setdefault(host["host"], set()).add(live["version"])
    recorded = {h["host"]: h["recorded"] for live in model["live"] for h in live["hosts"]}
    for host, declared in wanted.items():
        there = recorded[host]
        shown = ", ".join(there or []) or "none"
        checks.append(
            {
                "name": f"{model['name']} on {host}",
                "ok": there is not None and set(there) == declared,
                "detail": "nothing is recorded of this host; deploy it"
                if there is None
                else f"ran {shown} when it was last deployed"
                + (
                    ""
                    if set(there) == declared
                    else f"; declared: {', '.join(sorted(declared, key=int))}. Deploy"
                ),
            }
        )
    return checks


# -- as text -------------------------------------------------------------------------------------


def lines(found: Mapping[str, Any]) -> list[str]:
    """A table a model, for people."""
    text: list[str] = []
    for model in found["models"]:
        metrics = _metric_names(model)
        rows = [["version", "state", *metrics, "data", "age", "weight"]]
        for row in model["versions"]:
            rows.append(
                [
                    row["version"],
                    row["state"],
                    *(_figure(row["metrics"].get(name)) for name in metrics),
                    _short(row["data_sha256"]),
                    _age(row["age_seconds"]),
                    "" if row["weight"] is None else f"{row['weight']} %",
                ]
            )
        widths = [max(len(line[column]) for line in rows) for column in range(len(rows[0]))]
        text.append(model["name"])
        if model["versions"]:
            text += [
                "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
                for line in rows
            ]
        else:
            text.append("  no version in the store")
        for live in model["live"]:
            for host in live["hosts"]:
                text.append(
                    f"  {host['host']} ({live['fleet']}): declared {live['version']}, recorded "
                    f"{_recorded_text(host['recorded'])}; a rollback goes: "
                    f"{host['rollback'] or 'not known'}"
                )
    text += [f"WRONG  {c['name']}: {c['detail']}" for c in found["checks"] if not c["ok"]]
    return text or ["The store has no models, and none are declared."]


def _metric_names(model: Mapping[str, Any]) -> list[str]:
    """The names of all metrics, the one that decides first."""
    names = {name for row in model["versions"] for name in row["metrics"]}
    return sorted(names, key=lambda name: (name != model["metric"], name))


def _figure(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _short(digest: Any) -> str:
    return str(digest or "").rpartition(":")[2][:_SHOWN_DIGITS]


def _age(seconds: int | None) -> str:
    if seconds is None:
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{max(seconds, 0)} s"


def _recorded_text(versions: Sequence[str] | None) -> str:
    return "nothing" if versions is None else ", ".join(versions) or "none"


# -- as a page -----------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --text: #1a1d21; --dim: #5b6470; --back: #fff; --card: #f5f6f8;
  --line: #d5d9df; --accent: #0b5cad; --wrong: #a4161a; }
@media (prefers-color-scheme: dark) { :root { --text: #e8eaed; --dim: #a3abb6; --back: #15181c;
  --card: #1e2329; --line: #3a424c; --accent: #7ab8f5; --wrong: #ff8a8a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.2rem; margin: 0 0 .25rem; }
p { margin: .25rem 0 1rem; } .dim { color: var(--dim); } .wrong { color: var(--wrong); font-weight: 600; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: 1rem 1.25rem; margin: 1rem 0; }
.scroll { overflow-x: auto; margin-top: .75rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
caption { text-align: left; color: var(--dim); padding: 0 .6rem .25rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: top; }
td.long { white-space: normal; min-width: 14rem; } th { font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
code { font-size: .85em; } tr.live { background: color-mix(in srgb, var(--accent) 12%, transparent); }
svg { display: block; width: 100%; max-width: 44rem; height: auto; margin-top: .5rem; }
svg text { fill: var(--dim); font-size: 12px; } .axis { stroke: var(--line); }
.gate { stroke: var(--dim); stroke-dasharray: 5 4; }
.curve { fill: none; stroke: var(--accent); stroke-width: 2; } .point { fill: var(--accent); }
.ring { fill: none; stroke: var(--text); stroke-width: 2; } svg text.now { fill: var(--text); font-weight: 600; }
"""


def page(found: Mapping[str, Any]) -> str:
    """The report as one HTML file that loads nothing else."""
    title = f"Models of {found['environment']}"
    wrong = [check for check in found["checks"] if not check["ok"]]
    told = (
        f"As of {found['created']}. What serves is what the inventory declares; “recorded” is what "
        "ran when a host was last deployed."
    )
    body = [f"<h1>{escape(title)}</h1>", f'<p class="dim">{escape(told)}</p>']
    if wrong:
        body.append('<section aria-labelledby="wrong"><h2 id="wrong">Needs somebody</h2><ul>')
        body += [
            f'<li><span class="wrong">{escape(check["name"])}</span>: {escape(check["detail"])}</li>'
            for check in wrong
        ]
        body.append("</ul></section>")
    if not found["models"]:
        body.append("<p>The store has no models, and none are declared.</p>")
    for number, model in enumerate(found["models"]):
        body.append(_section(model, f"model-{number}"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(model: Mapping[str, Any], anchor: str) -> str:
    name = escape(model["name"])
    serving = "; ".join(
        f"version {escape(live['version'])}: {escape(str(live['weight']))} % of the requests, fleet "
        f"{escape(live['fleet'])}"
        for live in model["live"]
    )
    parts = [
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{name}</h2>',
        f"<p>{f'Serves: {serving}.' if serving else 'Not served: no model of this name is declared.'}</p>",
        _chart(model, anchor),
        _versions_table(model),
        _hosts_table(model),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def _versions_table(model: Mapping[str, Any]) -> str:
    if not model["versions"]:
        return "<p>No version is in the store.</p>"
    metrics = _metric_names(model)
    columns = [
        *(("version", ""), ("state", ""), ("serves", "number")),
        *((name, "number") for name in metrics),
        *(("age", "number"), ("data", ""), ("code", ""), ("image", ""), ("gate", "")),
    ]
    rows = []
    for row in reversed(model["versions"]):
        state = escape(row["state"])
        cells = [
            ("wrong" if row["state"] in (MALFORMED, INCOMPLETE) else "", state),
            ("number", "" if row["weight"] is None else f"{escape(str(row['weight']))} %"),
        ]
        if not row["detail"]:
            cells += [
                *(("number", escape(_figure(row["metrics"].get(name)))) for name in metrics),
                ("number", _titled(_age(row["age_seconds"]), row["created"])),
                ("", _code(row["data_sha256"])),
                ("", _code(row["code_revision"])),
                ("", _code(row["image"])),
                ("long", escape(_gate(row["gate"]))),
            ]
        live = ' class="live"' if row["weight"] else ""
        rest = len(columns) - len(cells) - 1
        told = f'<td class="long" colspan="{rest}">{escape(row["detail"])}</td>' if rest else ""
        rows.append(
            f'<tr{live}><th scope="row">{escape(row["version"])}</th>{_cells(cells)}{told}</tr>'
        )
    return _table("Versions in the store, the newest first", columns, rows)


def _hosts_table(model: Mapping[str, Any]) -> str:
    rows = []
    for live in model["live"]:
        for host in live["hosts"]:
            recorded = _recorded_text(host["recorded"])
            same = host["recorded"] is not None and live["version"] in host["recorded"]
            cells = [
                ("", escape(live["fleet"])),
                ("number", f"{escape(str(live['weight']))} %"),
                ("", escape(live["version"])),
                ("", recorded if same else f'<span class="wrong">{escape(recorded)}</span>'),
                ("long", escape(host["rollback"] or "not known")),
            ]
            rows.append(
                f'<tr><th scope="row">{escape(host["host"])}</th>' + _cells(cells) + "</tr>"
            )
    if not rows:
        return ""
    columns = [
        *(("host", ""), ("fleet", ""), ("weight", "number"), ("declared", "")),
        *(("recorded", ""), ("a rollback goes", "")),
    ]
    return _table("Who serves it", columns, rows)


def _table(caption: str, columns: Sequence[tuple[str, str]], rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col"{_class(kind)}>{escape(name)}</th>' for name, kind in columns)
    return (
        # Focusable, so that a wide table can be scrolled without a mouse.
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cells(cells: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<td{_class(kind)}>{content}</td>" for kind, content in cells)


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _titled(shown: str, whole: Any) -> str:
    return f'<span title="{escape(str(whole))}">{escape(shown)}</span>' if shown else ""


def _code(digest: Any) -> str:
    return f"<code>{_titled(_short(digest), digest)}</code>" if digest else ""


def _gate(gate: Mapping[str, Any]) -> str:
    """What a version had to reach, in a few words."""
    if not gate:
        return ""
    sign = "≤" if gate.get("higher_is_better") is False else "≥"
    said = []
    if gate.get("minimum") is not None:
        said.append(f"{gate.get('metric')} {sign} {_figure(gate['minimum'])}")
    if gate.get("live_value") is not None:
        said.append(
            f"version {gate.get('live_version')} had {_figure(gate['live_value'])} "
            f"(may be {_figure(gate.get('margin'))} worse)"
        )
    return ", ".join(said)


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 700, 190, 62, 40, 44, 28


def _chart(model: Mapping[str, Any], anchor: str) -> str:
    """The metric over the versions, as a line; nothing when fewer than two versions have it."""
    metric = model["metric"]
    points = [
        (row, float(row["metrics"][metric]))
        for row in model["versions"]
        if _is_number(row["metrics"].get(metric))
    ]
    if len(points) < 2:
        return ""
    values = [value for _, value in points]
    minimum = points[-1][0]["gate"].get("minimum")
    asked = [float(minimum)] if _is_number(minimum) else []
    low, high = min(values + asked), max(values + asked)
    if low == high:
        low, high = low - 0.5, high + 0.5

    def across(index: int) -> float:
        return _LEFT + index * (_WIDTH - _LEFT - _RIGHT) / (len(points) - 1)

    def up(value: float) -> float:
        return _TOP + (high - value) * (_HEIGHT - _TOP - _BOTTOM) / (high - low)

    spots = [(across(index), up(value)) for index, value in enumerate(values)]
    every = math.ceil(len(points) / 20)
    marks = []
    for index, ((row, value), (x, y)) in enumerate(zip(points, spots)):
        version = escape(row["version"])
        marks.append(
            f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>version {version}: '
            f"{escape(str(metric))} {value:.4g}</title></circle>"
        )
        if row["weight"]:
            marks.append(
                f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="8"/>'
                f'<text class="now" x="{x:.1f}" y="{y - 13:.1f}" text-anchor="middle">'
                f"live {row['weight']} %</text>"
            )
        if index % every == 0 or row["weight"]:
            marks.append(
                f'<text x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{version}</text>'
            )
    gate = ""
    if asked:
        gate = (
            f'<line class="gate" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{up(asked[0]):.1f}" '
            f'y2="{up(asked[0]):.1f}"/><text x="{_WIDTH - _RIGHT}" y="{up(asked[0]) - 4:.1f}" '
            f'text-anchor="end">gate {asked[0]:.4g}</text>'
        )
    name = escape(str(metric))
    better = "higher" if model["higher_is_better"] else "lower"
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    told = "; ".join(f"version {row['version']} {value:.4g}" for row, value in points)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{anchor}-t {anchor}-d">'
        f'<title id="{anchor}-t">{name} of {escape(model["name"])} by version</title>'
        f'<desc id="{anchor}-d">{escape(told)}</desc>'
        f'<text x="0" y="12">{name} ({better} is better)</text>'
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_HEIGHT - _BOTTOM}" '
        f'y2="{_HEIGHT - _BOTTOM}"/>'
        f'<text x="{_LEFT - 14}" y="{_TOP + 4}" text-anchor="end">{high:.4g}</text>'
        f'<text x="{_LEFT - 14}" y="{_HEIGHT - _BOTTOM}" text-anchor="end">{low:.4g}</text>'
        f'{gate}<polyline class="curve" points="{path}"/>{"".join(marks)}</svg>'
    )


def _is_number(value: Any) -> bool:
    # So many digits are no metric, and an int may have more than a float can hold.
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) < 1e15
        and math.isfinite(value)
    )
