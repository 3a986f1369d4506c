"""The report in a real browser: headless Chromium, at desktop and phone width, light, dark and printed.


Without a Chromium the tests are skipped, but not in CI (CI=true), where `.ci/run` installs one.
"""

import itertools
import os
import re

import pytest

from builders.browser import Browser, find_browser
from builders.evaluations import drift, folder, mmvp, post_trained, probes, retrieval, zero_shot
from diva_rs import Recipe
from diva_rs.evaluation import report

if os.environ.get("CI") != "true" and find_browser() is None:
    pytest.skip("no Chromium on the path: apt install chromium", allow_module_level=True)

PHONE, DESKTOP = 400, 1200
LONG = "a_name_without_any_space_" * 12


@pytest.fixture(scope="module")
def browser():
    program = find_browser()
    assert program is not None, "CI has to install a Chromium: see .ci/run"
    with Browser(program) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports with everything, with nothing measured, and with names that are far too long."""
    root = tmp_path_factory.mktemp("mmvp")
    before = [mmvp(range(27), root), zero_shot(150), retrieval(80.0), folder(30), probes(20)]
    after = [
        mmvp([*range(20), *range(60, 75)], root),
        zero_shot(120),
        retrieval(79.5),
        folder(30),
        probes(36),
    ]
    recipe = Recipe.named("diva-official-siglip-so400m-14-384")
    long = [mmvp(range(27), root, words=LONG), zero_shot(150, name=LONG)]
    return {
        "full": report.write(post_trained(recipe), root / "full", before=before, after=[*after, drift()]),
        "bare": report.write(post_trained(logs=1), root / "bare"),
        "long": report.write(
            post_trained(Recipe(name=LONG, prompt=LONG), clip=LONG, **{LONG: LONG}),
            root / "long",
            before=long,
            after=[mmvp(range(9), root, words=LONG), zero_shot(120, name=LONG)],
        ),
    }


@pytest.mark.parametrize("name", ["full", "bare", "long"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_is_quiet_and_asks_for_nothing(browser, pages, name, width, dark):
    browser.console.clear()
    browser.open(pages[name], width, dark=dark)
    assert browser.run("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    # Not hidden by a clipping box either: nothing but a table that scrolls by itself reaches past the edge.
    beyond = browser.run(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && "
        "e.getBoundingClientRect().width && e.getBoundingClientRect().right > innerWidth + 0.5)"
        ".map(e => e.tagName + ': ' + e.textContent.slice(0, 60))"
    )
    assert beyond == []
    assert browser.console == []
    outside = [address for address in browser.requests if not address.startswith("data:image/")]
    assert outside == [pages[name].resolve().as_uri()]


def test_every_element_is_there_and_visible(browser, pages):
    browser.open(pages["full"], DESKTOP)
    sizes = browser.run(
        "[...document.querySelectorAll('h1, nav a, section, table, svg.chart, .card img, .keys > div')]"
        ".map(e => [e.tagName, e.getBoundingClientRect().width, e.getBoundingClientRect().height])"
    )
    kinds = {kind.lower() for kind, _, _ in sizes}
    assert kinds == {"h1", "a", "section", "table", "svg", "img", "div"}
    assert all(width > 20 and height > 10 for _, width, height in sizes), sizes
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.run("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")


def test_no_label_of_a_chart_is_cut_off_or_covers_another(browser, pages):
    for name, width in itertools.product(pages, (PHONE, DESKTOP)):
        browser.open(pages[name], width)
        problems = browser.run(
            """[...document.querySelectorAll('svg.chart')].flatMap(svg => {
              const boxes = [...svg.querySelectorAll('text')]
                .map(t => [t.textContent, t.getBoundingClientRect()]);

              const out = boxes.filter(([, b]) => b.left < 0 || b.right > innerWidth)
                .map(([t]) => 'cut: ' + t);

              boxes.forEach(([t, a], i) => boxes.slice(i + 1).forEach(([u, b]) => {
                const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
                const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
                if (wide > 1 && high > 3) out.push(t + ' covers ' + u);
              }));
              return out;
            })"""
        )
        assert problems == [], (name, width)


def test_light_and_dark_differ_and_print_is_light(browser, pages, tmp_path):
    colours = {}
    for name, settings in (
        ("light", {}),
        ("dark", {"dark": True}),
        ("print", {"dark": True, "media": "print"}),
    ):
        browser.open(pages["full"], DESKTOP, **settings)
        style = browser.run(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        colours[name] = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in style]
    assert colours["light"][0] > 600 > 200 > colours["light"][1]
    assert colours["dark"][0] < 200 < 600 < colours["dark"][1]
    assert colours["print"][0] == 765 and colours["print"][1] == 0
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes()[:5] == b"%PDF-"


def test_the_picture_is_not_empty(browser, pages, tmp_path):
    from PIL import Image

    browser.open(pages["full"], DESKTOP)
    browser.screenshot(tmp_path / "page.png")
    picture = Image.open(tmp_path / "page.png").convert("RGB")
    assert picture.width == DESKTOP and picture.height > 3000
    # Every stretch of the page shows something.
    for top in range(0, picture.height - 600, 600):
        colours = picture.crop((0, top, DESKTOP, top + 600)).getcolors(1 << 20)
        assert len(colours) > 10, top


def test_the_browser_would_report_what_the_tests_look_for(browser, tmp_path):
    """The checks above can fail: a page with each of the faults shows each."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!DOCTYPE html><title>x</title><img src='https://example.invalid/a.png'>"
        "<div style='width: 900px'>wide</div><script>console.error('loud'); missing()</script>"
    )
    browser.console.clear()
    browser.open(bad, PHONE)
    assert browser.run("document.documentElement.scrollWidth") > PHONE
    assert any("loud" in line for line in browser.console)
    assert any("exception" in line for line in browser.console)
    assert "https://example.invalid/a.png" in browser.requests


def test_the_policy_keeps_out_what_escaping_would_have_missed(browser, pages, tmp_path):
    page = pages["bare"].read_text()
    hostile = "<img src='https://example.invalid/a.png'><script>document.title = 'run'</script>"
    (tmp_path / "hostile.html").write_text(page.replace("</h1>", f"</h1>{hostile}", 1))
    browser.open(tmp_path / "hostile.html", DESKTOP)
    assert browser.run("document.title").startswith("Post-training report")  # no script ran
    assert browser.blocked == ["https://example.invalid/a.png"]
