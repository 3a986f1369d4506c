import pytest
from PIL import Image


@pytest.fixture
def photos(tmp_path):
    """A folder with two pictures, one of them in a folder below."""
    root = tmp_path / "photos"
    for name, colour in (("cats/1.png", (255, 0, 0)), ("2.png", (0, 0, 255))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), colour).save(root / name)
    return root
