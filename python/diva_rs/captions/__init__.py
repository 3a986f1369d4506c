"""Caption feedback: captions that differ in one thing, judged by a diffusion model, as a target for CLIP.

`Vocabulary` makes contrast sets from a list of words. Others come from a file (`read_sets`), a loader
(`from_loader`), a user's captions (`swaps`), a dict or a function (`sets_of`).
"""

from diva_rs.captions.guesses import Guesses
from diva_rs.captions.judge import Judge
from diva_rs.captions.judgements import Evidence, Judgements, Verdict
from diva_rs.captions.negatives import swaps
from diva_rs.captions.posteriors import Reliability
from diva_rs.captions.sets import ContrastSet
from diva_rs.captions.sources import from_loader, from_values, read_sets, sets_of
from diva_rs.captions.term import CaptionTerm, KeepTerm, WrittenTerm
from diva_rs.captions.vocabulary import Attribute, Vocabulary
from diva_rs.captions.written import Writer

__all__ = [
    "Attribute",
    "CaptionTerm",
    "ContrastSet",
    "Evidence",
    "Guesses",
    "Judge",
    "Judgements",
    "KeepTerm",
    "Reliability",
    "Verdict",
    "Vocabulary",
    "Writer",
    "WrittenTerm",
    "from_loader",
    "from_values",
    "read_sets",
    "sets_of",
    "swaps",
]
