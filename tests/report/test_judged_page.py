"""The page and the table of judgements: figures, words, images and what was left out."""

import csv
import re

import numpy as np
import pytest
import torch

from builders.evaluations import jpeg_of
from builders.pages import parsed
from diva_rs.captions import ContrastSet, Evidence, Judgements
from diva_rs.data import Accounting
from diva_rs.report.judged import write_judged

COLOURS = ("red", "<b>blue</b>", "")
CARS = ContrastSet("colour", tuple(f"a {word} car" for word in COLOURS), COLOURS)


@pytest.fixture(scope="module")
def judged():
    """40 images of a reliable attribute, clearer from image to image, and of one that is a guess."""
    rng = np.random.default_rng(0)
    sets = {}
    for key in range(40):
        losses = rng.normal(1, 0.02, (3, 2 if key % 2 else 4))
        losses[key % 3] -= 0.01 + key / 500
        guess = Evidence(ContrastSet("guess", ("x", "y")), rng.random((2, 4)))
        sets[key] = [Evidence(CARS, losses, key % 2 == 1), guess]
    found = Judgements(sets)
    accounting = Accounting(used=40)
    accounting.leave_out("unreadable", "broken.jpg", count=2, picture=True)
    made_by = {"teacher": {"1 UNet": "abc"}, "rounds": 2, "judge": {"timestep_range": [0, 500]}}
    found.facts = found.facts.model_copy(update={"accounting": accounting, "made_by": made_by})
    return found


@pytest.fixture(scope="module")
def written(judged, tmp_path_factory):
    def pictures(keys):
        return {key: torch.full((3, 300, 200), key / 50) for key in keys if key != 39}

    names = {key: f"photos/{key}.jpg" for key in range(40) if key}
    return write_judged(judged, tmp_path_factory.mktemp("judged"), names, pictures)


@pytest.fixture(scope="module")
def page(written):
    return parsed(written.read_text())


def rows(table):
    return [[cell.text for cell in row.all("th", "td")] for row in table.all("tr")]


def test_the_table_of_attributes(page, judged):
    _, colour, guess = rows(page.one("section", id="attributes").one("table"))
    found = judged.reliability["colour"]
    low, high = found.interval
    assert 1 / 3 < low < found.accuracy < high < 1
    accuracy = f"{100 * found.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    temperature = f"{judged.temperatures['colour']:.3g}"
    assert (
        colour[:5] == ["colour", "33.3", f"{100 * found.agreement:.1f}", accuracy, temperature]
        and colour[6] == "3.00"
    )
    assert guess[0] == "guess" and guess[5:] == ["0.0", "4.00"]
    keys = {
        key.one("dt").text: [part.text for part in key.all("dd")]
        for key in page.one("dl", class_="keys").all("div")
    }
    assert keys["Images judged"] == ["40", "left out: 2"] and keys["Sets"] == ["80", "2 attributes"]
    assert keys["Draws of a set"] == ["3.50", "on average; at most 4"]


def test_the_sheet_has_the_most_and_the_least_certain(page, judged):
    sheet = page.one("section", id="sheet")
    cards = sheet.all("li")
    assert [each.text for each in sheet.all("h3")] == [
        f"Judged with the {which} certainty: 12 images" for which in ("most", "least")
    ]
    weighted = [key for key in judged if judged[key][0].weight]
    likely = {key: judged[key][0].posterior.max() for key in weighted}
    likely |= {key: np.mean([v.posterior.max() for v in judged[key]]) for key in judged if key not in likely}
    order = sorted(likely, key=lambda key: -likely[key])
    assert len(weighted) > 20 and 0 in order[-12:]
    shown = [*order[:12], *order[:-13:-1]]
    names = [f"photos/{key}.jpg" if key else "0" for key in shown]
    assert [card.one("h4").text for card in cards] == names
    for key, card in zip(shown, cards, strict=True):
        assert (card.text.count("image not found"), len(card.all("img"))) == ((1, 0) if key == 39 else (0, 1))
        colour, guess = card.one("dl").all("div")
        assert colour.attributes.get("class") == (None if key in weighted else "weightless")
        assert guess.attributes["class"] == "weightless"
        verdict = judged[key][0]
        word = COLOURS[verdict.best] or "(unsaid)"
        assert colour.all("dd")[1].text == f"{word}, {100 * verdict.posterior.max():.0f} %"
        heights = [re.search(r"height: ([\d.]+)%", bar.attributes["style"])[1] for bar in colour.all("i")]
        assert [float(height) for height in heights] == pytest.approx(100 * verdict.posterior, abs=0.051)
    key = next(key for key in shown if key != 39)
    picture = jpeg_of(cards[shown.index(key)].one("img").attributes["src"])
    assert max(picture.size) == 224 and abs(picture.getpixel((5, 5))[0] - 255 * key / 50) < 4


def test_what_was_judged_by_what(page):
    source = dict(rows(page.one("section", id="source").one("table"))[1:])
    assert source == {
        "Images": "40 images used, 2 left out: 2 unreadable (broken.jpg)",
        "Teacher 1 unet": "abc",
        "Rounds": "2",
        "Judge timestep_range": "0, 500",
    }
    assert page.one("section", id="certainty").all("svg")
    assert not page.all("script", "link", "b")


def test_the_csv_has_a_row_for_each_word(written, judged):
    with open(written.with_name("judged.csv"), newline="", encoding="utf-8") as file:
        header, *table = csv.reader(file)
    assert header == ["image", "name", "word", "probability", "loss", "draws", "weight"]
    assert len(table) == 40 * 5
    assert [row[:3] for row in table[5:8]] == [["photos/1.jpg", "colour", word] for word in COLOURS]
    assert table[0][0] == "0"
    verdict = judged[1][0]
    for row, share, loss in zip(table[5:8], verdict.posterior, verdict.losses, strict=True):
        assert [float(value) for value in row[3:]] == pytest.approx(
            [share, loss, 2, verdict.weight], rel=1e-5
        )


def test_few_images_and_many_words(tmp_path):
    words = tuple(map(str, range(30)))
    losses = np.ones((30, 2)) + np.arange(30)[:, None] / 100
    one = Judgements({5: [Evidence(ContrastSet("number", words), losses)]})
    page = parsed(write_judged(one, tmp_path).read_text())
    [card] = page.one("section", id="sheet").all("li")
    assert len(card.all("i")) == 12 and card.all("dd")[1].text.startswith("0, ")
    assert "left out: not recorded" in page.text
    empty = parsed(write_judged(Judgements({}), tmp_path).read_text())
    assert "There is no set." in empty.text
