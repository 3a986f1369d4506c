"""A term of the caller's own is one function: no file of the package names it."""

import torch

import diva_rs
from builders.small import images, small_clip, small_teacher


def decorrelate(view):
    """Off-diagonal correlations of the embedding's entries (Barlow Twins, arXiv 2103.03230)."""
    centred = view.pooled - view.pooled.mean(0)
    correlation = torch.corrcoef(centred.T)
    return (correlation - torch.diag(correlation.diag())).square().mean()


def test_a_term_from_outside_lowers_its_own_loss_and_is_logged_by_name():
    def last(weight):
        result = diva_rs.post_train(
            small_clip(),
            small_teacher(),
            [images(6, seed=n) for n in range(2)],
            terms={"decorrelate": (weight, decorrelate)},
            steps=12,
            optimizer="adamw",
            lr=3e-3,
            micro_batch=2,
            log_every=1,
            progress=False,
        )
        return [row["decorrelate"] for row in result.history]

    with_term, without = last(10.0), last(1e-6)
    assert len(with_term) == 12
    assert with_term[-1] / 10.0 < 0.8 * without[-1] / 1e-6
