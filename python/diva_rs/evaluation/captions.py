"""One image and several captions, or one caption and several images: which one fits?"""

import os
from typing import Any

from diva_rs.evaluation.detail import DetailResult
from diva_rs.evaluation.scoring import score_folder


def captions(
    clip: Any,
    preprocess: Any,
    tokenizer: Any,
    root: str | os.PathLike[str],
    benchmark: str | None = None,
    **settings: Any,
) -> DetailResult:
    """Score the choice among captions or images: SugarCrepe, SugarCrepe++, What'sUp, SPEC.

    * SugarCrepe: the caption beats the negative.
    * SugarCrepe++: "image-to-text": both captions beat the negative; ``result["text-only"]``: the captions
      are more similar to each other than either is to the negative.
    * What'sUp: "single": the right one of the options; ``result["pair"]`` and ``result["set"]``: all
      photographs of two opposite prepositions, or of the same two objects, are right.
    * SPEC: "image2text"; ``result["text2image"]``.

    A tie counts as wrong. Categories are the subsets; ``result.missing`` names published ones that are not
    there.

    Args:
        clip, preprocess, tokenizer: as for `mmvp_vlm`.
        root: the folder with the published JSON files.
        benchmark: "sugarcrepe", "sugarcrepe++", "whatsup" or "spec"; by default the format that the folder's
            files show.
        settings: fields of `Scoring`; ``images`` is the folder of COCO's val2017 or
            of Visual Genome, if it is neither in the folder nor beside it.

    A missing image or field, a gap in the keys, an id or key that is there twice, a wrong label and equal
    captions raise DataError.

    >>> result = captions(clip, preprocess, tokenizer, sugarcrepe_folder)
    >>> print(result.line)
    SugarCrepe (image-to-text)  ... of 6 items right  [...]  ... %
    """
    return score_folder((clip, preprocess, tokenizer), root, benchmark, "captions", settings)
