"""An exported run: complete, without paths, opened elsewhere, pushed to a stand-in for the hub, or not there at all."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from dixit.common import DixitError, read_json, run_main, write_json
from dixit.data.images import load, pixels
from dixit.play.explain import caption_images
from dixit.training.checkpoints import trained_weights
from dixit.training.runs import load_run
from eval import commands, evaluate, export, model_card, transfer

FILES = ["README.md", "base.safetensors", "config.yaml", "example_1.png", "example_2.png", "model.safetensors"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def evaluated_run(game_run, tiny, folder_of_cards, tmp_path_factory) -> Path:
    """A finished game that was evaluated, on other images too."""
    run = Path(shutil.copytree(game_run, tmp_path_factory.mktemp("evaluated") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIXIT_CACHE", str(tiny.cache))
        patch.setattr("sys.argv", ["evaluate", str(run), "eval.images=20"])
        commands.evaluate()
        patch.setattr("sys.argv", ["transfer", str(run), "--data", f"folder:{folder_of_cards}", "--pools", "1",
                                   "eval.images=20"])
        commands.transfer()
    for name in ("results", "transfer"):  # as the command writes it, not this test
        found = read_json(run / f"{name}.json")
        write_json(run / f"{name}.json", found | {"command": f"python -m eval.{name} {run} eval.images=20"})
    return run


@pytest.fixture(scope="module")
def exported(evaluated_run, tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("share") / "new" / "colours"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIXIT_CACHE", str(tiny.cache))
        export.export(evaluated_run, folder)
    return folder


def front_matter(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def parts_of(tiny) -> list[str]:
    return [f"speaker.llm={tiny.llm}", f"clip.name={tiny.clip}"]


def test_an_export_holds_weights_config_card_and_images(exported, evaluated_run):
    assert sorted(path.name for path in exported.iterdir()) == FILES
    assert [path.name for path in exported.parent.iterdir()] == ["colours"]
    assert exported.stat().st_mode & 0o777 == 0o755 and (exported / FILES[-1]).stat().st_mode & 0o444 == 0o444
    mine, theirs = load_file(exported / "model.safetensors"), load_file(trained_weights(evaluated_run))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_an_export_holds_no_absolute_path(exported, tiny, evaluated_run):
    home = [str(tiny.root), str(evaluated_run.parent), str(Path.home()), str(ROOT)]
    for path in exported.iterdir():
        content = path.read_bytes()
        assert not [place for place in home if place.encode() in content], path
    for name in ("README.md", "config.yaml"):
        assert not re.search(r"(?<![\w.:/])/\w+/", (exported / name).read_text())
    config = yaml.safe_load((exported / "config.yaml").read_text())
    assert config["speaker"]["init"] == "caption" and config["listeners"][0]["clip"] == "eye" and not config["out"]


def test_the_card_tells_what_the_run_measured(exported, evaluated_run, home):
    card = (exported / "README.md").read_text()
    matter = front_matter(exported)
    assert matter["library_name"] == "dixit" and matter["license"] == "other" and "image-captioning" in matter["tags"]
    assert evaluate.table(read_json(evaluated_run / "results.json")["figures"]) in card
    found = read_json(evaluated_run / "transfer.json")
    (name, figures), = found["figures"]["data"].items()
    table = transfer.table({f"folder:{Path(name).name}": figures})
    assert table.count("| trained |") == 2 and table in card and found["commit"] in card
    assert read_json(evaluated_run / "train.json")["commit"] in card
    assert "python -m eval.results run eval.images=20" in card
    assert "| grey | held-out | -1 | sees grey, eyes other\\_eye |" in card
    assert "Apache-2.0" in card and "drawn scenes" in card
    captions = read_json(evaluated_run / "results_captions.json")
    data = load(load_run(evaluated_run).config.data, "test")
    for number, row in ((1, 0), (2, 10)):  # of 20
        image = torch.tensor(list(Image.open(exported / f"example_{number}.png").get_flattened_data()))
        assert torch.equal(image, pixels(data, [row])[0].permute(1, 2, 0).flatten(0, 1))
        for speaker in ("base", "trained"):
            assert f"| {speaker} | {model_card.plain(captions[speaker]['texts'][row]) or '(nothing)'} |" in card


def test_an_export_opens_elsewhere(exported, evaluated_run, tiny, home, tmp_path):
    """Without the data, caches and runs of the machine that it comes from, by the lines of its card."""
    snippet = re.search(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL).group(1)
    assert snippet.count("\n") == 3
    shutil.copytree(exported, tmp_path / "colours")
    for part, place in (("speaker.llm", tiny.llm), ("clip.name", tiny.clip)):
        snippet = snippet.replace(f"{part}=PATH", f"{part}={place}")
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, timeout=120,
                          env=tiny.environment | {"DIXIT_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "cache" / "data").exists() and not (tmp_path / "cache" / "features").exists()
    run, other = load_run(evaluated_run), load_run(exported, parts_of(tiny))
    assert done.stdout.strip() == run.caption(exported / "example_1.png")
    images = pixels(load(run.config.data, "validation"))[:6]
    assert caption_images(other, images) == caption_images(run, images)  # of the base speaker too


def test_an_export_is_evaluated_like_its_run(exported, evaluated_run, tiny, home, tmp_path, monkeypatch):
    folder = shutil.copytree(exported, tmp_path / "colours")
    clips = [f"{group}.{i}.clip={clip}" for group, clip in (("listeners", tiny.clip), ("heldout", tiny.other_clip))
             for i in (0, 1)]
    monkeypatch.setattr("sys.argv", ["evaluate", str(folder), "eval.images=20", *parts_of(tiny), *clips])
    commands.evaluate()
    assert read_json(folder / "results.json")["figures"] == read_json(evaluated_run / "results.json")["figures"]


def test_a_run_can_start_from_an_export(exported, tiny, home, train, tmp_path):
    task = train(tiny.game_config, tmp_path / "next", f"speaker.init={exported}", "train.steps=1", "train.lr=0")
    shared = load_file(exported / "model.safetensors")
    assert all(torch.equal(value, shared[key]) for key, value in task.trained.state_dict().items())


def test_parts_that_are_missing_are_one_line(exported, tiny, home, tmp_path):
    with pytest.raises(DixitError, match="cannot load CLIP 'eye'"):
        load_run(exported)
    with pytest.raises(DixitError, match="'lite0' is not built yet; build it once with: dixit train clip "):
        load_run(exported, ["clip.name=lite0"])
    broken = shutil.copytree(exported, tmp_path / "broken")
    (broken / "base.safetensors").write_bytes(b"half")
    with pytest.raises(DixitError, match="base.safetensors is damaged .*; export or download it again"):
        load_run(broken, parts_of(tiny))


def test_the_card_says_how_to_get_its_parts(evaluated_run, home, tmp_path):
    """Of a run with a CLIP that is built here, and an asset for an LLM: only its config says so, it is not opened."""
    run = shutil.copytree(evaluated_run, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["clip"]["name"], config["speaker"]["llm"] = "lite0-pictures", "smollm2-135m"
    config["listeners"][0]["clip"] = config["listeners"][1]["clip"] = "mobilenetv2"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    export.export(run, tmp_path / "out")
    card, matter = (tmp_path / "out" / "README.md").read_text(), front_matter(tmp_path / "out")
    assert "dixit assets\ndixit train pictures/clip clip.name=lite0-pictures name=clip_lite0-pictures\n" in card
    assert "dixit train clip clip.name=mobilenetv2 name=clip_mobilenetv2\n" in card
    assert 'load_run("out")' in card and "One that is built on another machine may" in card
    assert matter["base_model"] == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert "| smollm2-135m | language model of the speaker | Apache-2.0 |" in card
    assert "| lite0 | CLIP that the speaker sees with | not stated by the package" in card


def test_a_run_without_results_speaks_for_itself(caption_run, home, tmp_path):
    export.export(caption_run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    run = load_run(caption_run)
    assert f"| trained | {model_card.plain(run.caption(tmp_path / 'out' / 'example_2.png')) or '(nothing)'} |" in card
    assert "has not been evaluated" in card and "| base |" not in card and "Zero-shot" not in card
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f for f in FILES if f != "base.safetensors"]


def test_results_of_other_weights_are_left_out(evaluated_run, home, tmp_path, capsys):
    run = shutil.copytree(evaluated_run, tmp_path / "run")
    for name in ("results", "transfer"):
        write_json(run / f"{name}.json", read_json(run / f"{name}.json") | {"weights": "0" * 64})
    export.export(run, tmp_path / "out")
    assert "has not been evaluated" in (tmp_path / "out" / "README.md").read_text()
    assert capsys.readouterr().err.count("is not about the weights that are exported") == 2


def test_images_that_are_gone_are_replaced_by_scenes(evaluated_run, home, tmp_path, capsys):
    run = shutil.copytree(evaluated_run, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= {"name": "folder", "path": str(tmp_path / "gone")}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    export.export(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Drawn scenes, because the images of the data set were not at hand" in card
    assert "the folder of images `gone`" in card and str(tmp_path) not in card
    assert "warning:" in capsys.readouterr().err


def test_lora_and_the_best_checkpoint_are_exported(tiny, home, train, tmp_path):
    train(tiny.caption_config, tmp_path / "run", "speaker.lora_rank=2", "train.steps=3", "train.eval_every=2",
          "train.best=-loss", "eval.checkpoint=best")
    shutil.rmtree(next((tmp_path / "run" / "best").glob("step_*")))
    shutil.copytree(tmp_path / "run" / "checkpoints" / "step_000002", tmp_path / "run" / "best" / "step_000002")
    export.export(tmp_path / "run", tmp_path / "out")
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert weights == (tmp_path / "run" / "best" / "step_000002" / "model.safetensors").read_bytes()
    assert [key for key in load_file(tmp_path / "out" / "model.safetensors") if key.startswith("lora.")]
    image = tmp_path / "out" / "example_1.png"
    assert load_run(tmp_path / "out", parts_of(tiny)).caption(image) == load_run(tmp_path / "run").caption(image)


@pytest.mark.parametrize(("word", "short"), [
    ("data.path=/home/me/photos", "data.path=photos"), ("folder:/home/me/my photos", "folder:my photos"),
    ("/home/me/runs/a", "a"), ("~/runs/a", "a"), ("runs/a", "runs/a"), ("train.steps=3", "train.steps=3"),
    ("listeners=[{name: a, clip: /home/me/eye}, {clip: /b/c}]", "listeners=[{name: a, clip: eye}, {clip: c}]"),
    ("hf-hub:owner/name", "hf-hub:owner/name"), ("--out=/tmp/x", "--out=x"), ("", "")])
def test_paths_by_hand(word, short):
    assert model_card.without_paths(word) == short


def test_captions_are_shown_as_text():
    assert model_card.plain("a <b>\n![x](y) | `c` *d*") == r"a &lt;b&gt; !\[x\](y) \| \`c\` \*d\*"


# --- what is refused ---


def test_a_run_that_is_not_finished(game_run, home, tmp_path):
    run = shutil.copytree(game_run, tmp_path / "run")
    (run / "train.json").unlink()
    with pytest.raises(DixitError, match="not a finished run"):
        export.export(run, tmp_path / "out")
    config = yaml.safe_load((game_run / "config.yaml").read_text())
    config["train"]["steps"] = 400
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(game_run / "train.json", run)
    with pytest.raises(DixitError, match="it holds 4 of 400 steps"):
        export.export(run, tmp_path / "out")
    with pytest.raises(DixitError, match="is not a run"):
        export.export(tmp_path, tmp_path / "out")
    config["task"] = "clip"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(DixitError, match="trained a CLIP"):
        export.export(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_weights_that_are_damaged(game_run, home, tmp_path):
    run = shutil.copytree(game_run, tmp_path / "run")
    save_file({"a": torch.zeros(1)}, trained_weights(run))
    with pytest.raises(DixitError, match="is not as it was written"):
        export.export(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_is_not_empty(evaluated_run, home, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for place in (tmp_path / "out", tmp_path / "out" / "mine.txt"):
        monkeypatch.setattr("sys.argv", ["export", str(evaluated_run), str(place)])
        with pytest.raises(SystemExit) as end:
            run_main(commands.export)
        assert end.value.code == 2
        assert capsys.readouterr().err == f"error: {place} is not an empty folder; choose another one\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]
    (tmp_path / "out" / "mine.txt").unlink()
    export.export(evaluated_run, tmp_path / "out")  # an empty folder will do
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


# --- the hub ---


class Hub(BaseHTTPRequestHandler):
    """What the hub does when a model is pushed: it makes a repository, and takes one commit of files."""

    def do_POST(self) -> None:
        body, hub = self.rfile.read(int(self.headers["Content-Length"])), self.server
        if self.headers.get("Authorization") != "Bearer hf_secret":
            self.answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self.answer(200, {"url": f"{hub.address}/me/{json.loads(body)['name']}"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            self.answer(200, {"files": [
                {"path": file["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                for file in json.loads(body)["files"]]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            self.answer(200, {"transfer": "basic", "objects": [
                {**item, "actions": {"upload": {"href": f"{hub.address}/put/{item['oid']}"}}}
                for item in json.loads(body)["objects"]]})
        elif "/commit/" in self.path and "full" in self.path:
            self.answer(403, {"error": "Private repository storage limit reached"})
        elif "/commit/" in self.path:
            hub.commits.append((self.path, [json.loads(line) for line in body.splitlines()]))
            self.answer(200, {"commitUrl": f"{hub.address}/me/colours/commit/1", "commitOid": "1" * 40})
        else:
            self.answer(404, {"error": "not found"})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.objects[hashlib.sha256(content).hexdigest()] = content
        self.answer(200, {})

    def answer(self, status: int, value: dict) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.created, server.commits, server.objects = [], [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def online(tiny, hub, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Run `python WORDS...` as a user does who is logged in, with the stand-in for the hub."""
    environment = {key: value for key, value in tiny.environment.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path / "hf"),
                    "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def call(*words: object) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=environment, capture_output=True,
                              text=True, timeout=120)
    return call


def test_an_export_is_pushed_in_one_commit(online, evaluated_run, hub, tmp_path):
    done = online("-m", "eval.export", evaluated_run, tmp_path / "out", "--push", "me/colours")
    assert done.returncode == 0, done.stderr
    assert f"pushed to {hub.address}/me/colours" in done.stdout
    assert [(made["name"], made.get("organization")) for made in hub.created] == [("colours", "me")]
    (path, lines), = hub.commits
    assert path.startswith("/api/models/me/colours/commit/main")
    values = {kind: [line["value"] for line in lines if line["key"] == kind] for kind in ("file", "lfsFile")}
    sent = {value["path"]: base64.b64decode(value["content"]) for value in values["file"]}
    sent |= {value["path"]: hub.objects[value["oid"]] for value in values["lfsFile"]}
    assert sent == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} and sorted(sent) == FILES
    assert b"hf download me/colours --local-dir out\n" in sent["README.md"]


TRIES = """
import os, sys
from dixit.common import run_main
from eval import commands
run, out = sys.argv[1:]
for name, token in ("me/colours", "hf_wrong"), ("not a name", "hf_secret"), ("me/full", "hf_secret"):
    os.environ["HF_TOKEN"], sys.argv = token, ["export", run, out, "--push", name]
    try:
        run_main(commands.export)
    except SystemExit as end:
        print("exit code", end.code)
"""


def test_a_push_that_fails_leaves_nothing(online, evaluated_run, hub, tmp_path):
    done = online("-c", TRIES, evaluated_run, tmp_path / "out")
    assert done.returncode == 0 and done.stdout == "exit code 2\n" * 3, done.stderr
    wrong, name, full = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "cannot push to me/colours" in wrong and "401" in wrong and "hf auth login" in wrong
    assert "cannot push to not a name" in name and "cannot push to me/full" in full and "403" in full
    assert "Traceback" not in done.stderr and len(hub.created) == 1 and not hub.commits
    assert not [path.name for path in tmp_path.iterdir() if path.name != "hf"]


def test_a_hub_that_is_not_there(evaluated_run, home, tmp_path):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(DixitError, match="cannot push to me/colours: .*offline.*; nothing was written"):
        export.export(evaluated_run, tmp_path / "out", "me/colours")
    assert not list(tmp_path.iterdir())
