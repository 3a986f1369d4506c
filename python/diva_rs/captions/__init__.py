"""Caption feedback: captions that differ in one thing, judged by a diffusion model, as a target for CLIP.

`Vocabulary` makes contrast sets from a list of words; other sets come from files, from captions and from
functions.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diva_rs.captions.judgements import Evidence, Judgements, Verdict
    from diva_rs.captions.posteriors import Reliability
    from diva_rs.captions.sets import ContrastSet
    from diva_rs.captions.vocabulary import Attribute, Vocabulary

# Public names and their modules, imported on first use.
_NAMES = {
    "Attribute": "vocabulary",
    "ContrastSet": "sets",
    "Evidence": "judgements",
    "Judgements": "judgements",
    "Reliability": "posteriors",
    "Verdict": "judgements",
    "Vocabulary": "vocabulary",
}

__all__ = [
    "Attribute",
    "ContrastSet",
    "Evidence",
    "Judgements",
    "Reliability",
    "Verdict",
    "Vocabulary",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
