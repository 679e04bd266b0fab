"""Write a report about a run: `python -m eval.report RUN` makes RUN/report.html, self-contained, and RUN/rounds.png.

The report has learning curves, the table of eval/evaluate.py, and a contact sheet: image, base and trained caption,
each listener's pick and its probability. If eval/transfer.py has been run, its table and images with their captions are
shown too, e.g. of photo stamps. All text is escaped.
"""

from __future__ import annotations

from dixit.common import run_main

from . import commands

if __name__ == "__main__":  # before the imports below, so that --help is quick
    run_main(commands.report)

import base64
import html
import io
import json
import textwrap
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from PIL import Image  # noqa: E402

from dixit.common import DixitError, atomic_path, atomic_write_text, read_json  # noqa: E402
from dixit.config import Config, load_config  # noqa: E402
from dixit.config_perception import perception_label  # noqa: E402
from dixit.data.images import load, open_data, pixels  # noqa: E402
from dixit.data.sources import EVALUATION_SETS  # noqa: E402
from dixit.models.perception import perceive  # noqa: E402

from . import transfer  # noqa: E402
from .evaluate import table  # noqa: E402

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1c1c28}
table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}td,th{padding:.3rem .6rem;
border-bottom:1px solid #ddd;text-align:left}.sheet{display:grid;gap:1rem;grid-template-columns:
repeat(auto-fill,minmax(17rem,1fr))}.card{border:1px solid #ddd;border-radius:.5rem;padding:.7rem}
.card img{width:96px;height:96px;border-radius:.3rem}.hit{color:#13703a}.miss{color:#a3262a}
.pick{font-size:13px;margin:.1rem 0}.bar{display:inline-block;height:.6rem;background:#7a6ff0;border-radius:.2rem}
h3{font-size:14px;margin:.4rem 0 .1rem}small{color:#666}"""


def data_uri(image: Image.Image) -> str:
    """An image as a data: URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def running_mean(values: Sequence[float], window: int = 20) -> list[float]:
    """The mean of each value and up to `window` - 1 before it."""
    return [sum(some) / len(some) for some in (values[max(0, i - window + 1):i + 1] for i in range(len(values)))]


def curves(folder: Path) -> str:
    """An <img> with reward, accuracies, and caption length over steps (running means); empty if there is no log."""
    log = folder / "log.jsonl"
    if not log.is_file():
        return ""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    groups = {"reward": ["reward"], "accuracy of each listener": [
        k for k in rows[-1] if k.startswith(("accuracy/", "eval/accuracy/", "eval/gap"))],
        "caption length and entropy": ["length", "entropy"]}
    figure, axes = plt.subplots(1, len(groups), figsize=(13, 3.2), layout="constrained")
    for axis, (title, keys) in zip(axes, groups.items(), strict=True):
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points and key.startswith("eval/"):
                axis.plot(*zip(*points, strict=True), marker="o", label=key)
            elif points:
                steps, values = zip(*points, strict=True)
                line, = axis.plot(steps, values, alpha=0.25)
                axis.plot(steps, running_mean(values), color=line.get_color(), label=key)
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    source = base64.b64encode(buffer.getvalue()).decode()
    return f'<img style="width:100%" alt="learning curves" src="data:image/png;base64,{source}">'


def as_html(markdown_table: str) -> str:
    """A Markdown table as an HTML one, escaped."""
    rows = [[html.escape(c.strip()) for c in line.strip("|").split("|")] for line in markdown_table.splitlines()]
    head, body = rows[0], rows[2:]
    return ("<table><tr>" + "".join(f"<th>{c}</th>" for c in head) + "</tr>"
            + "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in body) + "</table>")


def contact_sheet(config: Config, dataset: Dataset, picks: dict, count: int) -> str:
    """Cards of the first images: the target as each listener sees it, captions and picks."""
    cards = []
    speakers = [name for name in ("base", "trained", "oracle") if name in picks]
    for i in range(min(count, len(dataset))):
        image = pixels(dataset, [i]).float() / 255
        seen = []
        for listener in config.listeners:
            view = (perceive(image, listener.perception)[0] * 255).byte().permute(1, 2, 0).numpy()
            seen.append(f'<img alt="target as {html.escape(listener.name)} sees it" '
                        f'src="{data_uri(Image.fromarray(view))}">')
        parts = ["".join(seen)]
        for name in speakers:
            parts.append(f"<h3>{name}: {html.escape(picks[name]['texts'][i]) or '(nothing)'}</h3>")
            for j, listener in enumerate(config.listeners):
                hit, p = picks[name]["pick"][j][i] == 0, picks[name]["p_target"][j][i]
                parts.append(f'<div class="pick {"hit" if hit else "miss"}">{html.escape(listener.name)} '
                             f'{"finds it" if hit else "picks another"} '
                             f'<span class="bar" style="width:{80 * p:.0f}px"></span> {p:.2f}</div>')
        cards.append('<div class="card">' + "".join(parts) + "</div>")
    return '<div class="sheet">' + "".join(cards) + "</div>"


def zero_shot(folder: Path, config: Config, count: int) -> str:
    """The table of RUN/transfer.json, and images of each of its sets with their captions; empty if there is none.

    The images are evenly spaced over the set, `count` of them. Folders of images are in the table only.
    """
    if not (folder / "transfer.json").is_file():
        return ""
    sets = read_json(folder / "transfer.json")["figures"]["data"]
    captions = read_json(folder / "transfer_captions.json")
    parts = [f"<h2>Zero-shot</h2>{as_html(transfer.table(sets))}"]
    for name in (name for name in sets if name in EVALUATION_SETS):
        images = sets[name]["images"]
        dataset = open_data(name, replace(config, eval=replace(config.eval, images=images)))
        cards = []
        for i in sorted({round(k * (images - 1) / max(count - 1, 1)) for k in range(count)}):
            picture = Image.fromarray(pixels(dataset, [i])[0].permute(1, 2, 0).numpy())
            said = "".join(f"<h3>{speaker}: {html.escape(captions[name][0][speaker][i]) or '(nothing)'}</h3>"
                           for speaker in ("base", "trained") if speaker in captions[name][0])
            cards.append(f'<div class="card"><img alt="{name} {i}" src="{data_uri(picture)}">{said}</div>')
        parts.append(f'<h2>{name}</h2><div class="sheet">{"".join(cards)}</div>')
    return "".join(parts)


def write_picture(folder: Path, config: Config, dataset: Dataset, picks: dict) -> None:
    """RUN/rounds.png: up to four rounds, each with the target, the captions, and which listener finds it."""
    count = min(4, len(dataset))
    speakers = [name for name in ("base", "trained") if name in picks]
    figure, axes = plt.subplots(1, count, figsize=(3.4 * count, 4.2), layout="constrained", squeeze=False)
    for i, axis in enumerate(axes[0]):
        axis.imshow(pixels(dataset, [i])[0].permute(1, 2, 0).numpy())
        axis.axis("off")
        lines = []
        for name in speakers:
            caption = "\n".join(textwrap.wrap(picks[name]["texts"][i] or "(nothing)", 38))
            found = [f"{c.name} {'finds it' if picks[name]['pick'][j][i] == 0 else 'errs'}"
                     for j, c in enumerate(config.listeners)]
            lines.append(f"{name}: “{caption}”\n{', '.join(found)}")
        axis.text(0, -0.04, "\n\n".join(lines), transform=axis.transAxes, va="top", fontsize=9)
    with atomic_path(folder / "rounds.png") as temporary:
        figure.savefig(temporary, format="png", dpi=100, bbox_inches="tight")
    plt.close(figure)


def write_report(folder: Path, count: int = 24) -> Path:
    """Write RUN/report.html and rounds.png from RUN/results.json. Raises DixitError if the run is not evaluated yet."""
    config = load_config(folder / "config.yaml")
    results, picks = read_json(folder / "results.json"), read_json(folder / "results_captions.json")
    dataset = load(config.data, config.eval.split)
    dataset = dataset.select(range(len(picks["pools"])))  # the images that were evaluated
    listeners = ", ".join(f"{c.name} ({Path(c.model).name or c.clip}, sees {perception_label(c.perception)}, weight "
                          f"{c.weight:+g})" for c in config.listeners)
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(config.name)}</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style>
<h1>{html.escape(config.name)}</h1><p>Listeners: {html.escape(listeners)}. Reward {config.game.reward},
{config.game.candidates} candidates. Bars show the belief in the target.</p>
{curves(folder)}<h2>Test split</h2>{as_html(table(results["figures"]))}
<p><small>{html.escape(results["command"])}; config {html.escape(results["config_hash"])}; commit
{html.escape(results["commit"])}; seed {html.escape(str(results["seeds"]["run"]))}. Mean ± standard error over
images.</small></p>
<h2>Rounds</h2>{contact_sheet(config, dataset, picks, count)}{zero_shot(folder, config, count)}</html>"""
    atomic_write_text(folder / "report.html", page)
    write_picture(folder, config, dataset, picks)
    return folder / "report.html"


@torch.no_grad()
def main(arguments: Namespace) -> None:
    if arguments.images < 1:
        raise DixitError(f"--images is {arguments.images}; choose at least 1")
    print(f"written to {write_report(arguments.run, arguments.images)}")
