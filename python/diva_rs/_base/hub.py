"""Folders and repositories of the Hugging Face Hub: their weight files, and why a download failed."""

import re
from collections.abc import Iterator
from pathlib import Path

from diva_rs._base.optional import one_line
from diva_rs._base.stored import check_stored

# name[.variant][-00001-of-00002][.variant].safetensors
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(\w+))?(?:-\d+-of-\d+)?(?:\.(\w+))?\.(?:safetensors|bin)"
)
# Where repositories went that papers and tutorials name.
_MOVED = {
    "stabilityai/stable-diffusion-2": "sd2-community",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5",
}
_REASONS = (  # by the names of huggingface_hub's errors, the narrower ones first
    ("GatedRepoError", "it is gated: accept its licence on its page, then run: hf auth login"),
    ("RepositoryNotFoundError", "it is gone, renamed, or private (then run: hf auth login)"),
    ("RevisionNotFoundError", "it has no such revision"),
    ("LocalEntryNotFoundError", "it is not in the cache, and the Hub is out of reach"),
    ("OfflineModeIsEnabled", "it is not in the cache, and HF_HUB_OFFLINE is set"),
    ("EntryNotFoundError", "it lacks a file that is needed"),
)


def variant_of(folder: Path) -> str | None:
    """The variant ("fp16") of a folder that has its weights in variants alone, otherwise None."""
    variants = {match[1] or match[2] for match, _ in _weight_files(folder)}
    return None if None in variants else max(variants, default=None)


def check_weights(folder: Path) -> None:
    """Raise WeightsError naming a weight file of a folder that cannot be one: empty, a pointer, a page."""
    for _, path in _weight_files(folder):
        check_stored(path)


def hub_reason(err: BaseException, repository: str) -> str:
    """Why the Hub did not supply a repository, in one line, and what to do."""
    chain: list[str] = []
    link: BaseException | None = err
    while link is not None and len(chain) < 20:
        chain += [base.__name__ for base in type(link).__mro__]
        link = link.__cause__ or link.__context__
    reason = next((text for name, text in _REASONS if name in chain), one_line(err))  # type: ignore[arg-type]
    found = mirror(repository)
    return f"{reason}; {found} is a mirror of it" if found and "RepositoryNotFoundError" in chain else reason


def mirror(repository: str) -> str | None:
    """A repository with the content of one that left the Hub; also of its name alone."""
    name = repository.rsplit("/", 1)[-1]
    owners = (new for old, new in _MOVED.items() if name.startswith(old.split("/")[1]))
    own = next(owners, None) if repository.count("/") == 0 or repository.startswith(tuple(_MOVED)) else None
    return f"{own}/{name}" if own else None


def _weight_files(folder: Path) -> Iterator[tuple[re.Match[str], Path]]:
    for path in sorted(folder.glob("*")):
        match = _WEIGHTS.fullmatch(path.name)
        if match:
            yield match, path
