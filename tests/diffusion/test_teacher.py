"""The teacher against diffusers itself: predictions and gradients, precisions and devices."""

import copy

import diffusers
import pytest
import torch

from builders.changes import relative_error
from builders.diffusion import (
    TEXT_WIDTH,
    UNETS,
    direct_call,
    loss_of,
    teacher_inputs,
    tiny_dit,
    tiny_pipeline,
    tiny_scheduler,
    tiny_unet,
    tiny_vae,
)
from diva_rs.diffusion import Teacher
from diva_rs.diffusion.vae import vae_dtype

pytestmark = pytest.mark.parity

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
DTYPES = list(TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", UNETS)
def test_prediction_and_gradient_are_the_unets_own(kind, dtype):
    unet = tiny_unet(kind).to(dtype)
    reference = copy.deepcopy(unet)
    text = torch.randn(1, 7, TEXT_WIDTH, dtype=dtype)
    vae = None if kind.startswith("pixel") else tiny_vae()
    teacher = Teacher(unet, vae=vae, text_condition=text if kind == "unclip" else None)
    noisy, timesteps, condition = teacher_inputs(unet.config.in_channels, 5, teacher.condition_width, dtype)

    prediction = teacher.denoise(noisy, timesteps, condition)
    (gradient,) = torch.autograd.grad(loss_of(prediction), condition)

    expected = direct_call(kind, reference, noisy, timesteps, condition, text)[:, : noisy.shape[1]]
    (expected_gradient,) = torch.autograd.grad(loss_of(expected), condition)
    assert relative_error(prediction, expected) <= TOLERANCE[dtype]
    assert relative_error(gradient, expected_gradient) <= TOLERANCE[dtype]


@pytest.mark.parametrize("given", ["text_embeds", "time_ids", "both"])
def test_given_sdxl_conditions_reach_the_unet(given):
    unet = tiny_unet("sdxl").double()
    values = {"text_embeds": torch.randn(1, TEXT_WIDTH).double(), "time_ids": torch.rand(1, 6).double() * 100}
    added = {name: value for name, value in values.items() if given in (name, "both")}
    noisy, timesteps, condition = teacher_inputs(4, 5, 2 * TEXT_WIDTH, torch.float64)

    prediction = Teacher(unet, vae=tiny_vae(), added_cond_kwargs=added).denoise(noisy, timesteps, condition)

    defaults = {
        "text_embeds": torch.zeros(1, TEXT_WIDTH),
        "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]]),
    }
    expected_added = {name: value.repeat(3, 1).double() for name, value in {**defaults, **added}.items()}
    expected = unet(noisy, timesteps, condition, added_cond_kwargs=expected_added).sample
    plain = Teacher(unet, vae=tiny_vae()).denoise(noisy, timesteps, condition)
    assert relative_error(prediction, expected) <= 1e-10
    assert relative_error(prediction, plain) > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_class_embedding_as_condition_is_the_dit_with_that_class(dtype):
    dit = tiny_dit().to(dtype).eval()
    noisy, timesteps, _ = teacher_inputs(4, 1, 16, dtype)
    classes = torch.tensor([7, 0, 4])
    table = dit.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
    # Four positions whose mean is the embedding.
    spread = torch.randn(3, 4, 16, dtype=dtype)
    condition = table[classes].detach()[:, None] + spread - spread.mean(1, keepdim=True)

    expected = dit(noisy, timesteps, class_labels=classes).sample[:, :4]
    prediction = Teacher(dit).denoise(noisy, timesteps, condition)

    assert relative_error(prediction, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("label", ["replace", "join"])
def test_the_dits_gradient_is_that_of_its_label_embeddings(label):
    dit = tiny_dit().double()
    reference = copy.deepcopy(dit).eval()
    noisy, timesteps, condition = teacher_inputs(4, 5, 16, torch.float64)
    prediction = Teacher(dit, label=label).denoise(noisy, timesteps, condition)
    (gradient,) = torch.autograd.grad(loss_of(prediction), condition)

    # The reference has the condition in its tables: one row per sample, in every block.
    tables = [block.norm1.emb.class_embedder.embedding_table.weight for block in reference.transformer_blocks]
    for table in tables:
        nothing = table.data[10].clone() if label == "join" else 0
        table.data[:3] = condition.detach().mean(1) + nothing
    expected = reference(noisy, timesteps, class_labels=torch.arange(3)).sample[:, :4]
    rows = sum(grad[:3] for grad in torch.autograd.grad(loss_of(expected), tables))

    assert relative_error(prediction, expected) <= 1e-10
    assert relative_error(gradient, rows[:, None].expand(-1, 5, -1) / 5) <= 1e-10


def test_a_dit_stays_as_it_was_given():
    dit = tiny_dit(same_tables=False)
    before = copy.deepcopy(dit).eval()
    noisy, timesteps, condition = teacher_inputs(4, 2, 16, torch.float32)

    Teacher(dit).denoise(noisy, timesteps, condition)

    labels = torch.tensor([1, 2, 3])
    own = before(noisy, timesteps, class_labels=labels).sample
    assert torch.equal(dit(noisy, timesteps, class_labels=labels).sample, own)
    assert dit.state_dict().keys() == before.state_dict().keys()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in dit.modules())


@pytest.mark.parametrize("make", [tiny_unet, tiny_dit])
def test_gradient_checkpointing_gives_the_same_gradient(make):
    gradients = []
    for checkpointing in (False, True):
        model = make().double()
        if checkpointing:
            model.enable_gradient_checkpointing()
        teacher = Teacher(model)
        noisy, timesteps, condition = teacher_inputs(4, 2, teacher.condition_width, torch.float64)
        loss = loss_of(teacher.denoise(noisy, timesteps, condition))
        gradients.append(torch.autograd.grad(loss, condition)[0])
    assert gradients[0].abs().max() > 0
    assert relative_error(gradients[1], gradients[0]) <= 1e-10


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "unclip", "dit"])
def test_no_parameter_ever_gets_a_gradient(kind):
    if kind == "dit":
        pipeline = diffusers.DiTPipeline(tiny_dit(), tiny_vae(), tiny_scheduler())
    else:
        pipeline = tiny_pipeline(kind)
    held = [part.train() for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert all(p.requires_grad for module in held for p in module.parameters())

    teacher = Teacher.of(pipeline)
    assert {id(module) for module in teacher.modules()} == {id(module) for module in held}
    assert not any(module.training for module in held)
    noisy, timesteps, condition = teacher_inputs(4, 3, teacher.condition_width, torch.float32)
    latents, text = teacher.encode(torch.rand(3, 3, 32, 32)), teacher.text("a cat")
    assert not latents.requires_grad and not text.requires_grad
    loss_of(teacher.denoise(noisy + latents, timesteps, condition + text.mean())).backward()

    assert condition.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for module in held for p in module.parameters())


def test_dropout_stays_off_when_a_parent_is_put_into_train_mode():
    unet = tiny_unet(dropout=0.5)
    teacher = Teacher(unet)
    call = teacher_inputs(4, 3, TEXT_WIDTH, torch.float32)
    before = teacher.denoise(*call)
    torch.nn.ModuleList([unet]).train()
    assert torch.equal(teacher.denoise(*call), before)


def test_the_callers_autocast_and_dtype_do_not_change_the_teachers():
    teacher = Teacher(tiny_unet())
    noisy, timesteps, condition = teacher_inputs(4, 3, TEXT_WIDTH, torch.float32)
    expected = teacher.denoise(noisy, timesteps, condition)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(teacher.denoise(noisy, timesteps, condition), expected)
    half = teacher.denoise(noisy.bfloat16(), timesteps, condition)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, teacher.denoise(noisy.bfloat16().float(), timesteps, condition).bfloat16())


def test_timesteps_may_lie_between_integers():
    unet = tiny_unet().double()
    noisy, _, condition = teacher_inputs(4, 3, TEXT_WIDTH, torch.float64)
    timesteps = torch.tensor([0.25, 499.5, 998.75])
    expected = unet.eval()(noisy, timesteps, condition).sample
    ours = Teacher(unet).denoise(noisy, timesteps, condition)
    assert relative_error(ours, expected) <= 1e-10
    assert relative_error(ours, unet(noisy, timesteps.long(), condition).sample) > 1e-6


def test_precision_copies_only_what_does_not_fit():
    unet, vae = tiny_unet(), tiny_vae(force_upcast=False)
    teacher = Teacher(unet, vae=vae)
    assert teacher.unet is unet and teacher.to_precision("fp32").unet is unet
    call = teacher_inputs(4, 3, TEXT_WIDTH, torch.float32)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    expected, latents = teacher.denoise(*call), teacher.encode(images)

    double = teacher.to_precision("fp64")
    assert double.unet is not unet and double.dtype == torch.float64
    assert double.to_precision("fp64") is double and double.to_precision("fp32").unet is unet
    reference = copy.deepcopy(unet).double()(call[0].double(), call[1], call[2].double()).sample
    assert torch.equal(double.denoise(call[0].double(), call[1], call[2].double()), reference)

    half = teacher.to_precision("bf16")
    assert half.dtype == torch.bfloat16 and half.denoise(*call).dtype == torch.float32
    assert relative_error(half.denoise(*call), expected) <= 2e-2
    assert relative_error(half.encode(images), latents) <= 2e-2
    assert {p.dtype for module in half.modules() for p in module.parameters()} == {torch.bfloat16}
    assert {p.dtype for module in (unet, vae) for p in module.parameters()} == {torch.float32}
    assert torch.equal(teacher.denoise(*call), expected) and torch.equal(teacher.encode(images), latents)


def test_a_vae_that_overflows_runs_in_float32_instead_of_float16():
    overflows, sound = tiny_vae(force_upcast=True), tiny_vae(force_upcast=False)
    assert vae_dtype(overflows, torch.float16) == torch.float32
    assert vae_dtype(sound, torch.float16) == torch.float16
    assert vae_dtype(overflows, torch.bfloat16) == torch.bfloat16  # as wide as float32
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    teacher = Teacher(tiny_unet(), vae=overflows)
    half = teacher.to_precision("bf16")
    assert half.vae.dtype == torch.bfloat16
    assert relative_error(half.encode(images), teacher.encode(images)) <= 2e-2


@pytest.mark.parametrize("kind", [*UNETS, "dit"])
def test_nothing_is_read_from_or_made_on_the_host(kind):
    model = (tiny_dit() if kind == "dit" else tiny_unet(kind)).to("meta")
    pixels = kind.startswith("pixel")
    width = 48 if kind == "sdxl" else TEXT_WIDTH
    text = torch.zeros(1, 7, width, device="meta") if kind in ("sd1", "sdxl", "unclip") else None
    teacher = Teacher(model, vae=None if pixels else tiny_vae().to("meta"), text_condition=text)
    for precision in ("fp32", "bf16", "fp64"):
        teacher = teacher.to_precision(precision)
        images = torch.zeros(2, 3, *teacher.image_size, device="meta")
        latents = teacher.encode(images)
        condition = torch.zeros(2, 5, teacher.condition_width, device="meta", requires_grad=True)
        timesteps = torch.zeros(2, dtype=torch.int64, device="meta")
        prediction = teacher.denoise(latents, timesteps, condition)
        (gradient,) = torch.autograd.grad(prediction.square().mean(), condition)
        assert prediction.is_meta and prediction.shape == (2, *teacher.latent_shape)
        assert gradient.is_meta and gradient.shape == condition.shape
    if text is not None:
        assert teacher.text("a cat").is_meta


def test_device_moves_a_copy():
    unet = tiny_unet()
    teacher = Teacher(unet, vae=tiny_vae(), device="meta")
    assert teacher.device.type == "meta" and unet.device.type == "cpu"
    assert Teacher(unet, device="cpu").unet is unet
    assert teacher.encode(torch.zeros(1, 3, 32, 32, device="meta")).is_meta
    assert Teacher(unet, text_condition=torch.zeros(1, 7, TEXT_WIDTH), device="meta").text("").is_meta
    pipeline = tiny_pipeline()
    assert Teacher(pipeline, device="meta").text("a cat").is_meta
    assert pipeline.text_encoder.device.type == "cpu"


def test_wrapped_models_are_looked_through():
    unet = tiny_unet()
    assert Teacher(torch.nn.DataParallel(unet)).unet is unet
    assert Teacher(torch.compile(unet)).unet is unet
    vae = tiny_vae()
    assert Teacher(unet, vae=torch.compile(vae)).modules() == [unet, vae]
