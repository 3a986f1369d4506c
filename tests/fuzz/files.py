"""The target "files": good files are damaged, then read: a result, or an exception of diva_rs."""

import contextlib
import io
import logging
import random
import shutil
import traceback
import warnings
from pathlib import Path

from diva_rs.errors import DivaError
from fuzz.engine import special
from fuzz.payloads import payloads
from fuzz.places import PLACES
from fuzz.readers import READERS
from fuzz.structured import damages

OUTSIDE = 0.12  # share of cases with something else in a file's place
PICKLED = 0.08  # share of cases with a pickle there


class Files:
    """Damages one file of one reader's folder per case."""

    def __init__(self, scratch: Path) -> None:
        self.good, self.bad = scratch / "good", scratch / "case"
        self.marker = scratch / "code was run"
        self.pickles = list(payloads(self.marker).values())
        self.story = ""

    def warm_up(self) -> None:
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
        for name, reader in READERS.items():
            (self.good / name).mkdir(parents=True)
            reader.make(self.good / name)
            with _silence():
                reader.read(self.good / name)

    def run(self, rng: random.Random) -> str:
        name = rng.choices(list(READERS), [reader.weight for reader in READERS.values()])[0]
        reader = READERS[name]
        shutil.rmtree(self.bad, ignore_errors=True)
        shutil.copytree(self.good / name, self.bad)
        self.story = f"{name}: {self._damage(rng)}"
        if reader.seal is not None and rng.random() < 0.6:
            with contextlib.suppress(Exception):  # a file that cannot be read cannot be sealed
                if all(file.stat().st_size < 1 << 20 and file.is_file() for file in self.bad.rglob("*")):
                    reader.seal(self.bad)
        try:
            with _silence():
                reader.read(self.bad)
            outcome = "result"
        except DivaError as err:
            assert type(err) is not DivaError, f"{self.story}: {err!r}: an exception of a subclass is needed"
            assert 20 < len(str(err)) < 3000, f"{self.story}: a message of {len(str(err))} characters"
            outcome = type(err).__name__
        except AssertionError:
            raise
        except BaseException as err:
            lines = "".join(traceback.format_exception(err)[-6:])
            raise AssertionError(f"{self.story}: {type(err).__name__}: {str(err)[:300]}\n{lines}") from err
        assert not self.marker.exists(), f"{self.story}: code was run"
        return f"{name}: {outcome}"

    def keep(self, place: Path) -> None:
        shutil.copytree(self.bad, place, symlinks=True, ignore=special, dirs_exist_ok=True)
        (place / "story.txt").write_text(self.story)

    def _damage(self, rng: random.Random) -> str:
        files = sorted(file for file in self.bad.rglob("*") if file.is_file())
        steps = []
        for _ in range(rng.choice([1, 1, 1, 2])):
            file = rng.choice(files)
            if not file.is_file() or file.is_symlink():
                continue
            kind = rng.random()
            if kind < OUTSIDE:
                place = rng.choice(PLACES)
                place(file, rng)
                steps.append(f"{file.name}, {place.__name__}")
            elif kind < OUTSIDE + PICKLED:
                file.write_bytes(rng.choice(self.pickles))
                steps.append(f"{file.name}, a pickle")
            elif 0 < file.stat().st_size < 1 << 24:
                change = rng.choice(damages(file))
                with contextlib.suppress(Exception):  # no longer of its format
                    file.write_bytes(change(file.read_bytes(), rng))
                steps.append(f"{file.name}, {change.__name__}")
        return " and ".join(steps)


def target(scratch: Path) -> Files:
    return Files(scratch)


@contextlib.contextmanager
def _silence():
    """Libraries print complaints about damaged files to both streams."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
