"""``python -m lab licences``: the licence of every crate and library that a user of the wheel gets."""

import json
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Permissive, or weak copyleft that ends at the file.
ALLOWED = {
    *("MIT", "MIT-0", "MIT-CMU", "HPND", "0BSD", "BSD", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "ISC"),
    *(
        "Zlib",
        "Unlicense",
        "CC0-1.0",
        "Unicode-3.0",
        "BSL-1.0",
        "CNRI-Python",
        "PSF-2.0",
        "Python-2.0",
        "MPL-2.0",
        "LGPL-2.1-or-later",
    ),
}
# Names that older packages write in place of an SPDX expression.
_NAMES = (
    (r"apache", "Apache-2.0"),
    (r"\bmit\b", "MIT"),
    (r"bsd", "BSD"),
    (r"\bisc\b", "ISC"),
    (r"mozilla|mpl", "MPL-2.0"),
    (r"python software foundation|psf", "PSF-2.0"),
)
# What packages do not say in their metadata, by their repositories; CUDA's libraries come with torch.
_KNOWN = {"pycocoevalcap": "BSD-2-Clause"}
_OF_TORCH = ("nvidia-", "cuda-")
EXTRAS = ("all", "demo")


def crates() -> dict[str, str]:
    """Crate -> SPDX expression, of everything that a build on Linux takes from Cargo.lock."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--offline", "--all-features"]
    command += ["--filter-platform", "x86_64-unknown-linux-gnu"]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {one["name"]: one["license"] or "none" for one in json.loads(told)["packages"]}


def libraries(name: str = "diva-rs", extras: tuple[str, ...] = EXTRAS) -> dict[str, str]:
    """Library -> licence, of everything that ``name`` with these extras has installed here."""
    found: dict[str, str] = {}
    waiting = [(name, extras)]
    while waiting:
        name, wanted = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # of another platform or Python
        if key not in found:
            found[key] = licence(package)
            waiting += [(needed, ()) for needed in _needs(package, wanted)]
    return found


def _needs(package: Distribution, extras: tuple[str, ...]) -> Iterator[str]:
    for line in package.requires or ():
        required, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if extra is None or extra[1] in extras:
            yield re.split(r"[\s\[<>=!~(]", required.strip())[0]


def licence(package: Distribution) -> str:
    """The licence expression, or what classifiers and the licence's first line name."""
    about = package.metadata
    for expression in about.get_all("License-Expression") or ():
        return str(expression)
    told = [line for line in about.get_all("Classifier") or () if line.startswith("License ::")]
    text = " ".join([*told, *[text.partition("\n")[0] for text in about.get_all("License") or ()]])
    names = [name for pattern, name in _NAMES if re.search(pattern, text, re.IGNORECASE)]
    return " OR ".join(names) or _KNOWN.get(package.name, "none")


def refused(expression: str) -> bool:
    """Whether no choice that the expression offers is allowed.

    >>> refused("(MIT OR GPL-3.0-only) AND Unicode-3.0"), refused("GPL-3.0-only")
    (False, True)
    """
    parts = re.sub(r"[()]", " ", re.sub(r" WITH [\w.-]+", "", expression)).replace("/", " OR ")
    return not all(
        {name.strip() for name in re.split(r"\bOR\b", part)} & ALLOWED for part in parts.split(" AND ")
    )


def check() -> int:
    """Print the licences, and every package whose licence is not allowed; returns the exit code."""
    bad = 0
    for kind, found in (("crates", crates()), ("libraries", libraries())):
        wrong = {
            name: told for name, told in found.items() if refused(told) and not name.startswith(_OF_TORCH)
        }
        bad += len(wrong)
        print(f"{len(found)} {kind}: {', '.join(sorted(set(found.values())))}")
        for name, told in sorted(wrong.items()):
            print(f"  {name}: {told} is not among the licences that lab/licences.py allows")
    return 1 if bad else 0
