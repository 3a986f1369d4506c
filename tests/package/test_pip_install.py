"""`pip install .` into an empty environment, build isolation included."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import diva_rs
draws = diva_rs.draw(seed=0, ids=[1, 2], draws=2, latent_shape=(4, 8, 8), patches=16, choose=5)
words = diva_rs.captions.Vocabulary.photographs()  # a file of the package
print(draws.tokens.shape, "site-packages" in diva_rs.__file__, len(words.subjects) > 50)
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_package_installs_into_an_empty_environment(tmp_path):
    source, environment = tmp_path / "source", tmp_path / "environment"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", str(source)], check=True)
    # Outside the checkout, so that nothing but the installed package can be imported.
    run = subprocess.run([str(python), "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip() == "(2, 2, 5) True True", run.stderr
