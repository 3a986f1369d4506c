"""Named lists of data sets, by their names in clip-benchmark."""

from diva_rs._base.settings import hint
from diva_rs.errors import ConfigError, shown

# The 27 classification and 2 retrieval sets on which DIVA's paper reports what post-training costs (the list
# is that of EVA-CLIP, arXiv 2303.15389).
SUITES = {
    "diva": {
        "zero-shot": (
            *("imagenet1k", "imagenetv2", "imagenet-a", "imagenet-r", "imagenet_sketch", "objectnet"),
            *("cifar10", "cifar100", "mnist", "caltech101", "sun397", "fgvc_aircraft", "country211", "cars"),
            *("birdsnap", "dtd", "eurosat", "fer2013", "flowers", "food101", "gtsrb", "pcam", "pets"),
            *("renderedsst2", "vtab/resisc45", "stl10", "voc2007"),
        ),
        "retrieval": ("flickr30k", "mscoco_captions"),
    }
}

# In a suite, but in no release of clip-benchmark.
ABSENT = {"birdsnap": "clip-benchmark does not have it: build it as a webdataset of your own (wds/birdsnap)"}


def suite_datasets(suite: str, task: str) -> tuple[str, ...]:
    """The data sets of a suite for "zero-shot" or "retrieval".

    Raises:
        ConfigError: there is no such suite.

    >>> len(suite_datasets("diva", "zero-shot")), suite_datasets("diva", "retrieval")
    (27, ('flickr30k', 'mscoco_captions'))
    """
    if not isinstance(suite, str) or suite not in SUITES:
        near = hint(suite, SUITES) or f": there are {', '.join(SUITES)}"
        raise ConfigError(f"suite={shown(suite)} is not known{near}")
    return SUITES[suite][task]
