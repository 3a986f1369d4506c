"""Small benchmarks of fine detail in their published formats, and a model with planted answers.

Images are flat colours that spell a number. A `Planted` model embeds texts and images so that their
similarities are the planted ones: what it scores is known before it runs.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

# (captions, images) similarities, by what is right of them.
PLANS = {
    "group": ((0.9, 0.1), (0.1, 0.9)),
    "text": ((0.5, 0.6), (0.1, 0.7)),
    "image": ((0.5, 0.1), (0.6, 0.7)),
    "none": ((0.1, 0.9), (0.9, 0.1)),
    "tied": ((0.5, 0.5), (0.5, 0.5)),
}


def picture(number: int) -> Image.Image:
    """A flat image that spells a number below 512."""
    return Image.new("RGB", (8, 8), (number % 16 * 16 + 8, number // 16 * 8 + 4, 128))


def png(number: int) -> bytes:
    stored = io.BytesIO()
    picture(number).save(stored, format="PNG")
    return stored.getvalue()


class Planted(nn.Module):
    """A CLIP whose similarities are planted; `tokenize` belongs to it."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, int] = {}
        self.weights: dict[tuple[str, int], float] = {}
        self.vectors: dict[str, Mapping[str, float]] = {}  # a text as a sum of others
        self.images: dict[int, Mapping[str, float]] = {}
        self.calls = {"images": 0, "texts": 0}

    def plant(self, captions: Sequence[str], numbers: Sequence[int], rows: Sequence[Sequence[float]]) -> None:
        """The similarity of each caption to each image."""
        for caption, row in zip(captions, rows, strict=True):
            for number, weight in zip(numbers, row, strict=True):
                self.weights[caption, number] = weight

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[self.texts.setdefault(text, len(self.texts))] for text in texts])

    def encode_text(self, tokens: Tensor) -> Tensor:
        self.calls["texts"] += len(tokens)
        names = list(self.texts)
        return torch.stack([self._text(names[int(row[0])]) for row in tokens])

    def encode_image(self, pixels: Tensor) -> Tensor:
        self.calls["images"] += len(pixels)
        red, green = (255 * pixels[:, :2, 0, 0]).round().long().unbind(1)
        return torch.stack([self._image(int(n)) for n in green // 8 * 16 + red // 16])

    def _text(self, text: str) -> Tensor:
        vector = torch.zeros(2048)
        for name, weight in self.vectors.get(text, {text: 1.0}).items():
            vector[int(self.tokenize([name])[0, 0])] += weight
        return vector

    def _image(self, number: int) -> Tensor:
        vector = torch.zeros(2048)
        for name, weight in self.images.get(number, {}).items():
            vector += weight * self._text(name)
        for (text, other), weight in self.weights.items():
            if other == number:
                vector[self.tokenize([text])[0, 0]] = weight
        rest = 1 - float(vector.square().sum())
        if number not in self.images and rest > 0:  # a direction of its own, so that all have one length
            vector[1024 + number] = rest**0.5
        return vector


def pair_rows(model: Planted, plans: Sequence[str]) -> list[dict[str, Any]]:
    """Captions and image numbers of pairs, planted in ``model``."""
    rows = []
    for place, plan in enumerate(plans):
        captions = [f"a dog left of cat {place}", f"a cat left of dog {place}"]
        numbers = [2 * place, 2 * place + 1]
        model.plant(captions, numbers, PLANS[plan])
        rows.append({"captions": captions, "numbers": numbers})
    return rows


def _entries(model: Planted, plans: Sequence[str], folder: Path, ending: str) -> list[dict[str, Any]]:
    """Pairs by the names of their images, which are written."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for row in pair_rows(model, plans):
        for number in row["numbers"]:
            picture(number).save(folder / f"{number}.{ending}", format="PNG")
        images = {f"image_{n}": f"{number}.{ending}" for n, number in enumerate(row["numbers"])}
        entries.append({**images, **{f"caption_{n}": text for n, text in enumerate(row["captions"])}})
    return entries


def naturalbench(root: Path, plans: Sequence[str]) -> Planted:
    """``metadata.json`` and ``images``."""
    model = Planted()
    entries = [
        {"index": n, **entry} for n, entry in enumerate(_entries(model, plans, root / "images", "jpg"))
    ]
    (root / "metadata.json").write_text(json.dumps(entries))
    return model


def pairs_jsonl(root: Path, plans: Sequence[str]) -> Planted:
    """``pairs.jsonl`` beside the images, with two categories by turns."""
    model, lines = Planted(), []
    for place, entry in enumerate(_entries(model, plans, root, "png")):
        lines.append(json.dumps({**entry, "category": ("odd", "even")[place % 2], "id": f"p{place}"}) + "\n")
    (root / "pairs.jsonl").write_text("".join(lines))
    return model


def table(root: Path, plans: Sequence[str], name: str, stored: str = "parquet") -> Planted:
    """Winoground or VisMin: ``stored`` is "parquet", "shards", "saved" (arrow) or "jsonl"."""
    import pyarrow
    import pyarrow.parquet

    model, rows = Planted(), []
    for place, row in enumerate(pair_rows(model, plans)):
        first, second = ({"bytes": png(number), "path": f"{number}.png"} for number in row["numbers"])
        text = "caption" if name == "winoground" else "text"
        tags = {"tag": "Noun", "secondary_tag": "", "collapsed_tag": ("Object", "Relation")[place % 2]}
        kind = tags if name == "winoground" else {"category": ("object", "counting")[place % 2]}
        captions = {f"{text}_{n}": caption for n, caption in enumerate(row["captions"])}
        rows.append({"id": place, "image_0": first, "image_1": second, **captions, **kind})
    (root / "data").mkdir(parents=True)
    whole = pyarrow.Table.from_pylist(rows)
    if stored == "saved":
        (root / "test").mkdir()
        file = str(root / "test" / "data-00000-of-00001.arrow")
        with pyarrow.OSFile(file, "wb") as sink, pyarrow.ipc.new_stream(sink, whole.schema) as writer:
            writer.write_table(whole)
        (root / "dataset_dict.json").write_text('{"splits": ["test"]}')
    elif stored == "shards":
        half = len(rows) // 2
        for number, part in enumerate((whole[:half], whole[half:])):
            pyarrow.parquet.write_table(part, root / "data" / f"test-0000{number}-of-00002-1a2b.parquet")
    else:
        pyarrow.parquet.write_table(whole, root / "data" / "test-00000-of-00001.parquet")
        pyarrow.parquet.write_table(whole[:1], root / "data" / "train-00000-of-00001.parquet")
    return model


def sugarcrepe(root: Path, right: Mapping[str, Sequence[bool]], step: int = 1) -> Planted:
    """Files of some subsets, each with the items whose outcome is given, and ``val2017`` beside them."""
    model, number = Planted(), 0
    (root / "val2017").mkdir(parents=True)
    for subset, outcomes in right.items():
        entries = {}
        for place, good in enumerate(outcomes):
            captions = [f"a red {subset} {place}", f"a blue {subset} {place}"]
            model.plant(captions, [number], [[0.6], [0.3]] if good else [[0.3], [0.6]])
            name = f"{number:012}.jpg"
            picture(number).save(root / "val2017" / name, format="PNG")
            entries[str(step * place)] = dict(
                zip(("filename", "caption", "negative_caption"), (name, *captions), strict=True)
            )
            number += 1
        (root / f"{subset}.json").write_text(json.dumps(entries))
    return model


def sugarcrepe_pp(root: Path, plans: Mapping[str, Sequence[tuple[bool, bool]]]) -> Planted:
    """Lists with (whether image-to-text, whether text-only is right) of each item."""
    model, number = Planted(), 0
    (root / "val2017").mkdir(parents=True)
    for subset, outcomes in plans.items():
        entries = []
        for place, (seen, read) in enumerate(outcomes):
            one, two, negative, other = (
                f"{word} {subset} {place}" for word in ("one", "two", "not", "other")
            )
            model.vectors[two] = {one: 0.9, other: 0.4}
            model.vectors[negative] = {negative: 1.0} if read else {one: 0.95, negative: 0.3}
            good = {one: 1.0, other: 1.0, negative: 0.0 if read else -3.0}
            # Directions, which `_text` sums: a negative that is near needs its own part taken away.
            model.images[number] = good if seen else {negative: 1.0}
            name = f"{number:012}.jpg"
            picture(number).save(root / "val2017" / name, format="PNG")
            texts = {"caption": one, "caption2": two, "negative_caption": negative}
            entries.append({"id": place, "filename": name, **texts})
            number += 1
        (root / f"{subset}.json").write_text(json.dumps(entries))
    return model


WORDS = {"left": "to the left of", "right": "to the right of", "on": "on", "under": "under"}


def whatsup(root: Path, wrong: Sequence[str] = (), extra: int = 0) -> Planted:
    """Two sets of controlled A, one of controlled B, and two items of each of COCO and VG with one object.

    ``extra`` is how many more sets controlled A has.

    ``wrong`` holds the file stems and "coco 1"-like names of the items that the model gets wrong.
    """
    model, number = Planted(), 0
    for folder in ("controlled_images", "controlled_clevr", "val2017", "vg_images"):
        (root / folder).mkdir(parents=True)

    def option(first: str, second: str, preposition: str) -> str:
        words = {**WORDS, "in-front": "in front of", "behind": "behind"}[preposition]
        return f"A {first} {words} a {second}"

    def add(texts: list[str], name: str, path: Path) -> None:
        nonlocal number
        picks = texts[1 if name in wrong else 0]
        for text in texts:
            model.weights[text, number] = 0.5 if text == picks else 0.1
        picture(number).save(path, format="PNG")
        number += 1

    several = [("cup", "table"), ("beer-bottle", "armchair"), *((f"cup{n}", "chair") for n in range(extra))]
    for file, folder, scenes, prepositions in (
        ("images", "controlled_images", several, [*WORDS]),
        ("clevr", "controlled_clevr", [("mug", "plate")], ["left", "right", "in-front", "behind"]),
    ):
        entries = []
        for first, second in scenes:
            for preposition in prepositions:
                between = f"{preposition}_of" if preposition in ("left", "right", "in-front") else preposition
                stem = f"{first}_{between}_{second}"
                texts = [option(first, second, preposition)]
                texts += [option(first, second, other) for other in prepositions if other != preposition]
                add(texts, stem, root / folder / f"{stem}.jpeg")
                entries.append({"image_path": f"data/{folder}/{stem}.jpeg", "caption_options": texts})
        (root / f"controlled_{file}_dataset.json").write_text(json.dumps(entries))
    for source, folder, name in (("coco", "val2017", "{:012}.jpg"), ("vg", "vg_images", "{}.jpg")):
        entries = []
        for place in range(2):
            texts = [f"a {source} thing on the left {place}", f"a {source} thing on the right {place}"]
            add(texts, f"{source} {place}", root / folder / name.format(1000 + place))
            entries.append([1000 + place, *texts])
        (root / f"{source}_qa_one_obj.json").write_text(json.dumps(entries))
    return model


def spec(root: Path, right: Mapping[str, Mapping[str, Sequence[bool]]]) -> Planted:
    """Subset -> rule -> outcomes; the labels go round."""
    model, number = Planted(), 0
    for subset, rules in right.items():
        (root / subset / "images").mkdir(parents=True)
        for rule, outcomes in rules.items():
            entries = []
            for place, good in enumerate(outcomes):
                label = place % 3
                picks = label if good else (label + 1) % 3
                texts, numbers = [f"{subset} {rule} {place}"], [number, number + 1, number + 2]
                if rule == "image2text":
                    texts, numbers = [f"{subset} {n} things {place}" for n in range(3)], [number]
                for n, pick in enumerate([texts, numbers][rule == "text2image"]):
                    where = (pick, number) if rule == "image2text" else (texts[0], pick)
                    model.weights[where] = 0.6 if n == picks else 0.2
                for one in numbers:
                    picture(one).save(root / subset / "images" / f"{one}.jpg", format="PNG")
                files = [f"images/{one}.jpg" for one in numbers]
                query, keys = (files[0], texts) if rule == "image2text" else (texts[0], files)
                entries.append({"query": query, "keys": keys, "label": label})
                number += len(numbers)
            (root / subset / f"{rule}.json").write_text(json.dumps(entries))
    return model
