"""CLIP's own zero-shot guesses of what images show: where judging starts."""

from typing import Any

from torch import Tensor

from diva_rs.captions.texts import Texts
from diva_rs.captions.vocabulary import Vocabulary
from diva_rs.clip import adapt
from diva_rs.data.latent_store import hash_of_weights
from diva_rs.data.pixels import clip_input
from diva_rs.evaluation.embedder import library_embedding
from diva_rs.evaluation.measures import evaluating
from diva_rs.recipes.recipe import Recipe


class Guesses:
    """For each image the words whose captions CLIP finds most similar: first the subject, then each attribute
    in captions with this subject.

    ``clip`` is a model of open_clip, transformers or OpenAI's `clip`, ``tokenizer`` its own. Raises
    ConfigError for a model without a text tower.

    >>> clip, images, tokenizer = diva_rs.microworld.example("clip", "images", "tokenizer")
    >>> guesses = Guesses(clip, tokenizer, diva_rs.microworld.vocabulary())
    >>> sorted(guesses(images)[0])[:4]
    ['border', 'colour', 'count', 'direction']
    """

    def __init__(self, clip: Any, tokenizer: Any, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.texts = vocabulary, Texts(clip, tokenizer)

    def __call__(self, images: Tensor) -> list[dict[str, str]]:
        """Name -> word for images (B, 3, H, W) in [0, 1]."""
        with evaluating(self.texts.model) as model:
            tower = adapt(model, training=False)
            images = images.to(self.texts.device)
            pixels = clip_input(images, Recipe(), tower.image_size, tower.mean, tower.std)
            found = library_embedding(model, tower, pixels)
            guesses: list[dict[str, str]] = [{} for _ in images]
            for name in self.vocabulary.names():
                alike: dict[str | None, list[int]] = {}  # images with the same captions
                for row, guess in enumerate(guesses):
                    alike.setdefault(guess.get(self.vocabulary.SUBJECT), []).append(row)
                for subject, rows in alike.items():
                    values = {} if subject is None else {self.vocabulary.SUBJECT: subject}
                    chosen = self.vocabulary.set_of(name, values)
                    best = (found[rows] @ self.texts(chosen.captions).T).argmax(1)
                    for row, word in zip(rows, best.tolist(), strict=True):
                        guesses[row][name] = chosen.words[word]
        return guesses

    def identity(self) -> dict[str, Any]:
        """The model, as JSON values: where more images are judged, the guesses must be the same."""
        return {type(self.texts.model).__name__: hash_of_weights(self.texts.model)}
