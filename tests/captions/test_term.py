"""Terms over texts: the losses and gradients of plain PyTorch, for the models of every library."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from builders.autograd_step import AutogradStep
from builders.clips import clip_variants, library_embedding, pixels
from builders.judged import given, judged, vocabulary
from builders.small import gradients, images, small_clip, small_teacher, worst
from builders.texts import tokenize
from diva_rs import ConfigError, DataError, FeedbackLoss, Recipe, Trainer
from diva_rs.captions import CaptionTerm, KeepTerm, WrittenTerm
from diva_rs.captions.texts import Texts
from diva_rs.step.draws import sample_keys

KEYS = [10, 11, 12, 13, 14]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
BANK = ["a cat", "a dog on a mat", "two cups"]
VARIANTS = clip_variants()
SIGLIP = ["transformers-siglip", "timm-siglip"]
MODELS = [
    *SIGLIP,
    "open_clip-gelu",
    "open_clip-coca",
    "transformers-clip",
    "transformers-metaclip2",
    "openai",
]


def model_of(name, dtype=torch.float64):
    model = VARIANTS[name](dtype=dtype).eval()
    if name == "timm-siglip":  # as open_clip builds SigLIP
        model.logit_bias = nn.Parameter(torch.full((), -1.5, dtype=dtype))
    with torch.no_grad():
        model.logit_scale.fill_(1.3)
    return model


def text_of(model, caption):
    """(D,): the library's own embedding of one text."""
    ids = tokenize([caption])
    if hasattr(model, "get_text_features"):
        found = model.get_text_features(ids)
        found = found if isinstance(found, torch.Tensor) else found[1]
    else:
        found = model.encode_text(ids)
        found = found[0] if isinstance(found, tuple) else found
    return found[0].detach()


def logits_of(model, embedding, captions):
    scale, bias = model.logit_scale.detach().exp(), getattr(model, "logit_bias", None)
    alike = [cosine_similarity(embedding, text_of(model, caption), dim=0) for caption in captions]
    return (scale * torch.stack(alike) + (0 if bias is None else bias.detach())).flatten()


def captions_reference(model, verdicts, form, temperature=1.0):
    """The loss by its definition, one caption at a time: every set of every image."""

    def loss(view):
        total = 0
        for embedding, key in zip(view.pooled, view.keys.tolist(), strict=True):
            sets = [one for one in verdicts.get(key, ()) if one.weight > 0]
            for one in sets:
                powers = one.posterior ** (1 / temperature)
                logits = logits_of(model, embedding, one.set.captions)
                found = torch.sigmoid(logits) if form == "sigmoid" else logits.exp() / logits.exp().sum()
                for p, q in zip(powers / powers.sum(), found, strict=True):
                    part = p * (np.log(p) - q.log()) if p > 0 else 0
                    if form == "sigmoid" and p < 1:
                        part = part + (1 - p) * (np.log(1 - p) - (1 - q).log())
                    total = total + one.weight / len(sets) * part
        return total / len(view.keys)

    return loss


def written_reference(model, term, form):
    """CLIP's loss over all images and distinct texts, and SigLIP's over their pairs, one logit at a time."""

    def loss(view):
        writer, keys = term.writer, [key for key in view.keys.tolist() if key in term.writer.judged]
        said = [writer.caption(key, view.epoch) for key in keys]
        hard = [text for key in keys for text in writer.negatives(key, term.hard, view.epoch)]
        texts = sorted({*said, *hard})
        rows = [row for row, key in enumerate(view.keys.tolist()) if key in keys]
        logits = torch.stack([logits_of(model, view.pooled[row], texts) for row in rows])
        if form == "sigmoid":
            right = torch.tensor([[text == one for text in texts] for one in said])
            found = torch.where(right, torch.sigmoid(logits), torch.sigmoid(-logits))
            return -found.log().sum() / len(said)
        total = 0
        for row, one in enumerate(said):
            column = texts.index(one)
            total = total - (logits[row].exp() / logits[row].exp().sum())[column].log()
        for one in said:  # the images of one caption share its target
            column = logits[:, texts.index(one)]
            shared = [row for row, other in enumerate(said) if other == one]
            total = total - (column.exp() / column.exp().sum())[shared].log().mean()
        return total / (2 * len(said))

    return loss


def keep_reference(model):
    def loss(view):
        total = 0
        for before, after in zip(view.original, view.pooled, strict=True):
            p, q = (logits_of(model, one, BANK).exp() for one in (before, after))
            p, q = p / p.sum(), q / q.sum()
            total = total + (p * (p.log() - q.log())).sum()
        return total / len(view.pooled)

    return loss


def check(model, term, reference, dtype):
    """The loss and its gradient at the embeddings, against a float64 reference."""
    batch = pixels(model, len(KEYS), dtype)
    embedding = library_embedding(model, batch).detach()
    found = []
    for function, kind in ((term, dtype), (reference, torch.float64)):
        pooled = embedding.to(kind, copy=True).requires_grad_()
        view = SimpleNamespace(
            pooled=pooled, original=pooled.detach().flip(0), keys=sample_keys(KEYS), epoch=3
        )
        loss = function(view)
        loss.backward()
        found.append((float(loss.detach()), {"pooled": pooled.grad.double()}))
    (loss, grads), (expected, wanted) = found
    assert expected > 1e-4 and abs(loss - expected) <= TOLERANCES[dtype] * max(expected, 0.1)
    assert worst(grads, wanted) <= TOLERANCES[dtype]


@pytest.mark.parity
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_captions_have_the_gradient_of_plain_pytorch(name, dtype):
    model, form = model_of(name, dtype), "sigmoid" if name in SIGLIP else "softmax"
    term = CaptionTerm(given(), model, tokenize, sets=9)
    assert term.texts.form == form
    check(model, term, captions_reference(copy.deepcopy(model).double(), given(), form), dtype)


@pytest.mark.parity
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", ["transformers-siglip", "open_clip-gelu"])
def test_each_form_and_temperature(name, form, temperature):
    model = model_of(name)
    term = CaptionTerm(given(), model, tokenize, sets=9, temperature=temperature, form=form)
    check(model, term, captions_reference(model, given(), form, temperature), torch.float64)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_keep_has_the_gradient_of_plain_pytorch(name, dtype):
    model = model_of(name, dtype)
    check(model, KeepTerm(model, tokenize, BANK), keep_reference(copy.deepcopy(model).double()), dtype)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("share", "hard"), [(0.5, 0), (0.5, 2), (0.0, 1)])
@pytest.mark.parametrize("name", ["transformers-siglip", "open_clip-gelu", "transformers-clip", "openai"])
def test_written_captions_have_the_gradient_of_plain_pytorch(name, share, hard, dtype):
    model, form = model_of(name, dtype), "sigmoid" if name in SIGLIP else "softmax"
    term = WrittenTerm(judged(14), model, tokenize, share, hard)  # images 10 to 13
    written = [term.writer.caption(key, 3) for key in KEYS[:4]]
    assert (len(set(written)) < 4) is (share == 0)  # of two subjects: duplicates
    reference = copy.deepcopy(model).double()
    check(model, term, written_reference(reference, term, form), dtype)


def test_hard_negatives_differ_in_one_judged_word():
    term = WrittenTerm(judged(), small_clip(), tokenize, share=1.0, hard=3)
    for key in range(8):
        caption, others = term.writer.caption(key, 5).split(), term.writer.negatives(key, 3, 5)
        assert len(set(others)) == 3
        for other in others:
            assert sum(a != b for a, b in zip(caption, other.split(), strict=True)) == 1
    assert len(term.writer.negatives(0, 99)) == 1 + 2 + 1 + 1
    with pytest.raises(ConfigError, match="hard=-1"):
        WrittenTerm(judged(), small_clip(), tokenize, hard=-1)


@pytest.mark.parity
@pytest.mark.parametrize("micro_batch", [None, 1, 2, 3])
@pytest.mark.parametrize("face", [Trainer, FeedbackLoss])
def test_in_a_step_at_any_micro_batch(face, micro_batch):
    clip, teacher = small_clip(torch.float64), small_teacher(torch.float64)
    recipe = Recipe(precision="fp64", draws=2, choose=4, anchor=0.2, micro_batch=micro_batch)
    ours = {
        "captions": (0.3, CaptionTerm(given(), clip, tokenize, sets=9)),
        "written": (0.5, WrittenTerm(judged(14), clip, tokenize, hard=1)),
        "keep": (2.0, KeepTerm(clip, tokenize, BANK)),
    }
    text = small_clip(torch.float64)
    theirs = {
        "captions": (0.3, captions_reference(text, given(), "softmax")),
        "written": (0.5, written_reference(text, ours["written"][1], "softmax")),
        "keep": (2.0, keep_reference(text)),
    }
    step = face(clip, teacher, recipe, terms=ours)
    twin = Trainer(small_clip(torch.float64), teacher, recipe, terms=theirs)
    with torch.no_grad():  # away from the untouched model, where the gradient of `keep` is 0
        for model in (clip, twin.clip):
            model.visual.proj.add_(0.1 * torch.randn(32, 20, generator=torch.Generator().manual_seed(0)))
    reference = AutogradStep(twin, theirs)
    reference.original = small_clip(torch.float64)
    expected, grads = reference.run(images(5), KEYS)
    if face is Trainer:
        losses = step.train(images(5), KEYS).losses
        found = gradients(step)
    else:
        step(images(5), KEYS).backward()
        losses, modules = step.losses, step.step_modules
        named = {**modules.parameters, **dict(step.projector.named_parameters(prefix="projector"))}
        found = {name: value.grad for name, value in named.items() if value.grad is not None}
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(expected, rel=1e-10)
    assert expected["keep"] > 1e-3 and worst(found, grads) <= 1e-10


def chosen(term, keys=range(8), epoch=0):
    view = SimpleNamespace(keys=sample_keys(list(keys)), epoch=epoch)
    return [(int(view.keys[one.row]), tuple(one.captions), one.share) for one in term._chosen(view)]


def test_sets_and_context_are_drawn_by_seed_key_and_epoch():
    made, clip = judged(), small_clip()
    term = CaptionTerm(made, clip, tokenize)
    whole = chosen(term)
    assert [key for key, *_ in whole] == sorted([*range(8)] * 2)
    alone = [(key, captions, share / 8) for n in range(8) for key, captions, share in chosen(term, [n])]
    assert alone == whole and chosen(CaptionTerm(made, clip, tokenize)) == whole
    others = chosen(term, epoch=1), chosen(CaptionTerm(made, clip, tokenize, seed=1))
    assert all(other != whole for other in others) and others[0] != others[1]
    # Every set of every image has its turn.
    varies = [
        (key, frozenset(captions[0].split()) ^ frozenset(captions[1].split()))
        for n in range(40)
        for key, captions, _ in chosen(term, epoch=n)
    ]
    assert len({(key, min(words - {"a", "an"})) for key, words in varies}) == 8 * 4


@pytest.mark.parametrize("context", [0.0, 0.5, 1.0])
def test_captions_say_the_subject_and_a_part_of_the_other_values(context):
    term = CaptionTerm(judged(), small_clip(), tokenize, sets=9, context=context)
    found = [captions for n in range(100) for _, captions, _ in chosen(term, [3], n)]
    colours = [captions for captions in found if "blue" in captions[1]]  # of a small dog that is shut
    others = [{}, {"size": "small"}, {"state": "shut"}, {"size": "small", "state": "shut"}]
    allowed = {vocabulary().set_of("colour", {"subject": "dog", **said}).captions for said in others}
    assert len(colours) == 100 and set(colours) <= allowed
    share = np.mean([word in captions[0] for captions in colours for word in ("small", "shut")])
    assert abs(share - context) <= 5 * (context * (1 - context) / 200) ** 0.5


def test_images_without_a_set_count_as_zero_and_unknown_ones_alone_are_an_error():
    clip = small_clip()
    term = CaptionTerm(given(), clip, tokenize)
    pooled = torch.randn(20)

    def loss(keys):
        return term(SimpleNamespace(pooled=pooled.expand(len(keys), -1), keys=sample_keys(keys), epoch=0))

    assert float(loss([13])) == 0
    assert float(loss([11, 13, 99])) == pytest.approx(float(loss([11])) / 3)
    with pytest.raises(DataError, match=r"no image of the batch was judged.*key is 99.*ids"):
        loss([99, 14])


def test_training_on_judgements_makes_clip_say_them():
    made, clip = judged(8), small_clip()
    term = CaptionTerm(made, clip, tokenize, sets=9, context=0.0)
    trainer = Trainer(
        clip, small_teacher(), Recipe(optimizer="adamw", lr=3e-3), terms={"captions": (1.0, term)}
    )
    losses = []
    for _ in range(60):
        trainer.step({"images": images(8), "ids": range(8)})
        losses.append(float(trainer.metrics["captions"]))
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    "wrong", [{"sets": 0}, {"context": 1.5}, {"temperature": 0.0}, {"form": "hinge"}], ids=str
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CaptionTerm(given(), small_clip(), tokenize, **wrong)


def test_a_model_without_texts_or_scale_is_refused():
    for model in (small_clip().visual, VARIANTS["transformers-clip-vision"]()):
        with pytest.raises(ConfigError, match="text tower"):
            KeepTerm(model, tokenize, BANK)
    clip = small_clip()
    del clip.logit_scale
    with pytest.raises(ConfigError, match="logit_scale"):
        Texts(clip, tokenize)
    for texts in (["one"], "two texts"):
        with pytest.raises(ConfigError, match="two or more"):
            KeepTerm(small_clip(), tokenize, texts)


def test_a_text_is_embedded_once_and_alike_in_any_company(monkeypatch):
    clip, sizes = small_clip(), []
    encode = clip.encode_text
    monkeypatch.setattr(clip, "encode_text", lambda ids: (sizes.append(len(ids)), encode(ids))[1])
    clip.train()
    texts, many = Texts(clip, tokenize, batch=4, most=6), [f"a {word}" for word in "bcdefg"]
    rows = texts(many[:3] + many[:2])
    assert sizes == [4] and rows.requires_grad is False and clip.training
    assert torch.equal(texts([many[2], many[0]]), rows[[2, 0]]) and sizes == [4]
    alone = Texts(clip, tokenize, batch=4)
    assert all(torch.equal(alone([text])[0], row) for text, row in zip(many[:3], rows, strict=False))
    assert torch.equal(texts(many)[:3], rows[:3])  # six are kept
    calls = len(sizes)
    texts(many)
    assert len(sizes) == calls
    texts(["another"])
    texts(many[:1])
    assert len(sizes) == calls + 2
    assert rows.norm(dim=1) == pytest.approx(torch.ones(5))
