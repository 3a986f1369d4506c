"""Terms of the loss that the caller adds, by name."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from diva_rs._native import View  # part of the interface of a term
from diva_rs.errors import ConfigError, a_type

Term = Callable[[View], Tensor]

# Other values in the logs have these names.
_TAKEN = {"loss", "denoising", "contrast", "anchor", "grad_norm", "lr", "epoch", "samples", "step", "skipped"}


def named_terms(terms: Mapping[str, tuple[float, Term]] | None) -> list[tuple[str, float, Term]]:
    """The caller's terms as (name, weight, function).

    A function maps a `View` of the batch to a loss (0-dim). Of several ranks, each one's function sees that
    rank's batch; gradients are averaged over the ranks. A function with the attribute ``needs_original =
    True`` reads ``view.original``: its run resumes only with the CLIP from which it began. Where a function
    has a method ``identity()``, which returns JSON values, a run resumes only where they are the same.

    >>> named_terms({"spread": (0.5, lambda view: -view.pooled.var())})[0][:2]
    ('spread', 0.5)
    """
    return [_term(name, given) for name, given in (terms or {}).items()]


def identity_of(terms: Mapping[str, tuple[float, Term]] | None) -> dict[str, str]:
    """Of each of the caller's terms its weight, and what its method ``identity()`` says where it has one.

    >>> identity_of({"spread": (0.5, lambda view: -view.pooled.var())})
    {'spread': 'weight 0.5'}
    """
    return {
        name: f"weight {weight:g}" + (f", {term.identity()}" if hasattr(term, "identity") else "")
        for name, weight, term in named_terms(terms)
    }


def _term(name: Any, given: Any) -> tuple[str, float, Term]:
    if not isinstance(name, str) or not name.isidentifier() or name in _TAKEN:
        raise ConfigError(
            f"terms has the name {name!r}: use another identifier; {', '.join(sorted(_TAKEN))} are taken"
        )
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not callable(given[1]):
        raise ConfigError(
            f"terms[{name!r}] is {a_type(given)}: give (weight, function), such as (0.5, lambda view: ...)"
        )
    return name, float(given[0]), given[1]
