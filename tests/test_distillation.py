"""Distillation: what the teacher sees and changes, in any order and with all other algorithms."""

import copy
import functools
import itertools
import math

import pytest
import torch
import transformers as hf
from composer.algorithms import CutMix, MixUp
from composer.core import Callback
from composer.loss import soft_cross_entropy
from composer.models import ComposerClassifier, ComposerModel, HuggingFaceModel
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from trainer_support import K, classifier, examples, fit

from composer_ls import Distillation, LabelSmoothing, smooth_labels
from composer_ls.composition import describe
from composer_ls.diagnostics.teaching import distillation_loss
from composer_ls.errors import DiagnosticsError, TargetError, TeacherError

MIXERS = {
    "none": lambda: None,
    "MixUp": lambda: MixUp(0.4),
    "MixUp of losses": lambda: MixUp(0.4, interpolate_loss=True),
    "CutMix": lambda: CutMix(1.0),
    "CutMix of losses": lambda: CutMix(1.0, interpolate_loss=True),
}


def teacher_network():
    torch.manual_seed(11)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, K))


class Recording(nn.Module):
    """A network that remembers what it was given."""

    def __init__(self, network):
        super().__init__()
        self.network, self.inputs = network, []

    def forward(self, x):
        self.inputs.append(x.detach().clone())
        return self.network(x)


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_order_with_smoothing_and_mixing_does_not_matter(mixer):
    def weights(order):
        parts = [Distillation(teacher_network(), 3, 0.7), LabelSmoothing(0.1), MIXERS[mixer]()]
        return fit([parts[index] for index in order if parts[index] is not None])

    orders = list(itertools.permutations(range(3)))
    expected = weights(orders[0])
    for order in orders[1:]:
        torch.testing.assert_close(weights(order), expected, rtol=1e-6, atol=1e-7)


def test_a_step_descends_the_formula_on_smoothed_and_mixed_targets():
    teacher, mixer = teacher_network().eval(), MixUp(0.4)
    model = classifier()
    start = copy.deepcopy(model.module)
    after = fit(
        [Distillation(teacher, 3, 0.7, student_temperature=2), LabelSmoothing(0.1), mixer], model=model, steps=1
    )
    images, labels = (part[:8] for part in examples())
    images = (1 - mixer.mixing) * images + mixer.mixing * images[mixer.indices]
    logits = start(images)
    hard = smooth_labels(logits, labels, 0.1)
    target = (1 - mixer.mixing) * hard + mixer.mixing * hard[mixer.indices]
    distillation_loss(logits, teacher(images), target, 3, 0.7, student_temperature=2).backward()
    expected = torch.cat([(p - 0.1 * p.grad).detach().flatten() for p in start.parameters()])
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-6)


def test_mixed_losses_and_mixed_targets_agree():
    one, other = (
        fit([MixUp(0.4, interpolate_loss=interpolate), LabelSmoothing(0.1), Distillation(teacher_network(), 2, 0.6)])
        for interpolate in (False, True)
    )
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_teacher_sees_the_students_mixed_input(mixer):
    teacher, student = Recording(teacher_network()), Recording(classifier().module)
    mixers = [one for one in [MIXERS[mixer]()] if one is not None]
    fit([Distillation(teacher), *mixers], model=ComposerClassifier(student, num_classes=K))
    assert len(teacher.inputs) == len(student.inputs) == 3
    for seen, given in zip(teacher.inputs, student.inputs, strict=True):
        assert torch.equal(seen, given)


def test_the_teacher_is_evaluated_without_gradient_and_stays_what_it_was():
    teacher = teacher_network().train()
    before = copy.deepcopy(teacher.state_dict())
    fit([Distillation(teacher, weight=1.0)])
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


class WithTeacher(ComposerClassifier):
    """A student that keeps its teacher as an attribute."""

    def __init__(self, module, teacher):
        super().__init__(module, num_classes=K)
        self.teacher = teacher.requires_grad_(False)


def test_a_teacher_that_is_a_part_of_the_student_is_evaluated_too():
    teacher, loader = teacher_network(), DataLoader(TensorDataset(*examples()), 8)
    inside = WithTeacher(classifier().module, teacher)
    options = {"steps": 6, "eval_dataloader": loader, "eval_interval": "1ba"}
    fit([Distillation(teacher, 2, 0.6)], model=inside, **options)
    outside = classifier()
    fit([Distillation(teacher_network(), 2, 0.6)], model=outside, **options)
    assert torch.equal(inside.module[1].weight, outside.module[1].weight)
    assert all(torch.equal(value, teacher_network().state_dict()[name]) for name, value in teacher.state_dict().items())


def test_layers_that_a_teacher_shares_stay_in_training_mode_for_the_student():
    modes = []
    shared = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    shared.register_forward_hook(lambda module, *rest: modes.append([part.training for part in module.modules()]))
    student, teacher = (nn.Sequential(shared, nn.Linear(192, K)) for _ in range(2))
    fit([Distillation(teacher)], model=ComposerClassifier(student, num_classes=K), steps=2)
    assert modes == [[False] * 3, [True] * 3] * 2


def test_its_own_weights_as_teacher_give_a_student_no_gradient():
    model = classifier()
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    after = fit([Distillation(copy.deepcopy(model.module), temperature=4, weight=1.0)], model=model)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-7)


def test_weight_zero_is_training_without_a_teacher_and_random_numbers_are_left_alone():
    expected = fit([LabelSmoothing(0.1), MixUp(0.4)])
    torch.testing.assert_close(
        fit([Distillation(teacher_network(), weight=0), LabelSmoothing(0.1), MixUp(0.4)]), expected
    )


def test_microbatches_give_the_step_of_the_whole_batch():
    def weights(**options):
        return fit([Distillation(teacher_network(), 2, 0.6), LabelSmoothing(0.1)], **options)

    torch.testing.assert_close(weights(device_train_microbatch_size=2), weights(), rtol=1e-5, atol=1e-6)


def test_a_composer_model_as_teacher_gets_the_whole_batch():
    module = teacher_network()
    torch.testing.assert_close(
        fit([Distillation(ComposerClassifier(copy.deepcopy(module), num_classes=K))]), fit([Distillation(module)])
    )


def test_losses_of_several_parts_and_outputs_with_a_key():
    class TwoLosses(ComposerClassifier):
        parts = staticmethod(lambda loss: (0.25 * loss, 0.75 * loss))

        def forward(self, batch):
            return {"logits": super().forward(batch)}

        def loss(self, outputs, batch):
            return self.parts(F.cross_entropy(outputs["logits"], batch[1]))

        def update_metric(self, batch, outputs, metric):
            pass

    class TotalLoss(TwoLosses):
        parts = staticmethod(lambda loss: {"total": loss, "other": 2 * loss})

    def teacher():
        return ComposerClassifier(teacher_network(), num_classes=K)

    class InADict(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = teacher_network()

        def forward(self, x):
            return {"logits": self.network(x)}

    expected = fit([Distillation(teacher(), 2, 0.6)])
    for cls in (TwoLosses, TotalLoss):
        model = cls(classifier().module, num_classes=K)
        weights = fit([Distillation(InADict(), 2, 0.6, output_key="logits")], model=model)
        torch.testing.assert_close(weights, expected)


def test_label_maps_are_taught_too():
    torch.manual_seed(3)
    teacher = nn.Conv2d(3, K, 1)
    one, other = (
        fit(list(order), segmentation=True, model=classifier(segmentation=True))
        for order in itertools.permutations([Distillation(teacher, 2, 0.6), LabelSmoothing(0.1)])
    )
    torch.testing.assert_close(one, other)


def test_checkpoints_hold_the_student_only(tmp_path):
    fit([Distillation(teacher_network())], save_folder=str(tmp_path), save_interval="1ba")
    state = torch.load(tmp_path / "latest-rank0.pt", weights_only=False)["state"]
    assert state["model"].keys() == classifier().state_dict().keys()
    assert (tmp_path / "latest-rank0.pt").stat().st_size < 40_000
    assert len(state["optimizers"]["SGD"]["param_groups"][0]["params"]) == 2


def test_the_plan_tells_of_the_teacher():
    from composer import Trainer

    algorithms = [Distillation(teacher_network(), 4, 0.75), LabelSmoothing(0.1)]
    plan = describe(Trainer(model=classifier(), algorithms=algorithms, progress_bar=False))
    assert plan.endswith("; teacher Sequential at temperature 4 counts 0.75, the loss 0.25")
    assert "may rewrite targets" not in plan
    assert repr(algorithms[0]).startswith("Distillation(teacher='Sequential', temperature=4, weight=0.75")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": 0}, DiagnosticsError, "temperature must be a positive number, but is 0"),
        ({"student_temperature": -1}, DiagnosticsError, "temperature must be a positive number, but is -1"),
        ({"weight": 1.5}, DiagnosticsError, r"weight must be in \[0, 1\], but is 1.5"),
        ({"teacher": 3}, TypeError, "teacher must be a network, but is int: give a module"),
        ({"teacher": "runs/mine"}, TypeError, r"but is str: .*load_teacher\(PATH\).module is the one of a run folder"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Distillation(**({"teacher": teacher_network()} | arguments))


def test_a_teacher_with_other_classes_and_the_student_itself_are_refused():
    with pytest.raises(DiagnosticsError, match=r"teacher's logits have shape \(8, 7\), the student's \(8, 5\)"):
        fit([Distillation(nn.Sequential(nn.Flatten(), nn.Linear(192, 7)))])
    model = classifier()
    for itself in (model, model.module):
        with pytest.raises(TeacherError, match="the teacher is the student itself: give Distillation a copy"):
            fit([Distillation(itself)], model=model)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            lambda x: (x, 2 * x),
            "teacher's output is tuple of 2 with several tensors that could be logits, .*such as output_key=1",
        ),
        (
            lambda x: {"loss": x.mean()},
            "teacher's output is dict with the keys loss with no logits, .*such as output_key='logits'",
        ),
    ],
)
def test_an_output_without_one_tensor_of_logits_says_what_to_give(output, message):
    class Odd(nn.Module):
        def forward(self, x):
            return output(x)

    with pytest.raises(TypeError, match=message):
        fit([Distillation(Odd())])


def test_a_dataloader_of_dense_rows_is_taught_too():
    images, labels = examples()
    rows = F.one_hot(labels, K).float()
    dense = fit([Distillation(teacher_network())], loader=DataLoader(TensorDataset(images, rows), 8))
    torch.testing.assert_close(dense, fit([Distillation(teacher_network())]), rtol=1e-5, atol=1e-6)


class Losses(Callback):
    """Records the losses on which the Trainer calls backward(), and the last gradient of the first parameter."""

    def __init__(self):
        self.seen, self.gradient = [], None

    def after_backward(self, state, logger):
        self.seen.append(float(state.loss.detach().sum()))
        gradient = next(state.model.parameters()).grad
        self.gradient = None if gradient is None else gradient.clone()


class Fixed(ComposerModel):
    """Logits that are parameters, in any layout."""

    def __init__(self, logits, layout=lambda logits: logits, loss=None):
        super().__init__()
        self.logits, self.layout, self.own_loss = nn.Parameter(logits.clone()), layout, loss

    def forward(self, batch):
        return self.layout(self.logits * 1.0)

    def loss(self, outputs, batch):
        return self.logits.sum() * 0 if self.own_loss is None else self.own_loss(self.logits, batch)


def one_step(student, teacher, labels, *, batch=None, **options):
    """The loss of one step in which the teacher alone counts, or as the options say, and the gradient of the logits."""
    losses = Losses()
    algorithm = Distillation(teacher, **{"temperature": 1.0, "weight": 1.0, **options})
    data = [(torch.zeros(len(labels), 1), labels) if batch is None else batch]
    fit([algorithm], model=student, loader=data, device_train_microbatch_size=100, steps=1, callbacks=[losses])
    return losses.seen[0], losses.gradient


def dense_reference(student, teacher, counted, dim):
    """In float64, with the classes moved last."""
    x = student.detach().double().requires_grad_()
    q = -(teacher.double().softmax(dim) * x.log_softmax(dim)).sum(dim)
    loss = q[counted].sum() / max(1, int(counted.sum()))
    loss.backward()
    return loss.item(), x.grad.float()


SHAPES = [  # logits, the dimension of classes
    ((4, 6, 11), -1),
    ((4, 11, 6), 1),
    ((6, 5, 6), -1),  # N = K
    ((6, 6, 5), 1),
    ((2, 5, 7, 6), 1),
    ((2, 7, 6, 5), -1),
    ((5, 1, 9), -1),
    ((1, 9, 7), -1),
    ((2, 40, 5000), -1),
    ((2, 150, 48, 48), 1),
]


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_the_classes_are_found_by_the_labels_and_ignored_ones_do_not_teach(shape, dim):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(shape, generator=generator) for _ in range(2))
    positions = student.movedim(dim, 1)[:, 0].shape
    labels = torch.randint(0, shape[dim], positions, generator=generator, dtype=torch.int32)
    labels.view(-1)[::4] = -100
    loss, gradient = one_step(Fixed(student), Fixed(teacher), labels)
    value, expected = dense_reference(student, teacher, labels != -100, dim)
    assert loss == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("dim", [1, -1])
def test_classes_that_could_be_in_either_dimension_need_class_dim(dim):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 6, 6, generator=generator) for _ in range(2))
    labels = torch.zeros(3, 6).long()
    with pytest.raises(
        TargetError, match=r"logits have shape \(3, 6, 6\) and the labels \(3, 6\).*class_dim=1.*class_dim=-1"
    ):
        one_step(Fixed(student), Fixed(teacher), labels)
    loss, _ = one_step(Fixed(student), Fixed(teacher), labels, class_dim=dim)
    assert loss == pytest.approx(dense_reference(student, teacher, labels == 0, dim)[0], rel=1e-5)


def test_the_number_of_classes_tells_where_rows_and_unneeded_labels_do_not():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 6, 5, generator=generator) for _ in range(2))
    rows = F.one_hot(torch.zeros(3, 6).long(), 5).float()
    for options in ({}, {"ignore_index": None}):
        model = Fixed(student)
        model.num_classes = 5
        loss, _ = one_step(model, Fixed(teacher), rows, **options)
        assert loss == pytest.approx(
            dense_reference(student, teacher, torch.ones(3, 6, dtype=torch.bool), -1)[0], rel=1e-5
        )


def test_what_one_batch_has_shown_settles_a_later_batch_that_could_be_either():
    generator = torch.Generator().manual_seed(0)
    teacher = nn.Linear(4, 5)
    batches = [(torch.randn(3, t, 4, generator=generator), torch.zeros(3, t).long()) for t in (7, 5)]

    class Tokens(ComposerModel):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 5)

        def forward(self, batch):
            return self.layer(batch[0])

        def loss(self, outputs, batch):
            return F.cross_entropy(outputs.flatten(0, 1), batch[1].flatten())

    torch.manual_seed(0)
    student, losses = Tokens(), Losses()
    start = copy.deepcopy(student)
    fit(
        [Distillation(teacher, weight=1)],
        model=student,
        loader=batches,
        device_train_microbatch_size=100,
        steps=2,
        callbacks=[losses],
    )
    everything = torch.ones(3, 7, dtype=torch.bool)
    value, _ = dense_reference(start(batches[0]), teacher(batches[0][0]).detach(), everything, -1)
    assert losses.seen[0] == pytest.approx(value, rel=1e-5)
    with pytest.raises(TargetError, match="either dimension 1 or the last could hold the classes"):
        fit(
            [Distillation(teacher, weight=1)],
            model=Tokens(),
            loader=batches[::-1],
            device_train_microbatch_size=100,
            steps=2,
        )


LAYOUTS = {
    "tensor": lambda logits: logits,
    "tuple with a loss": lambda logits: (logits.mean(), logits),
    "dict": lambda logits: {"features": logits[:, :1], "logits": logits},
    "torchvision": lambda logits: {"out": logits, "aux": 2 * logits},
    "ModelOutput": lambda logits: hf.modeling_outputs.CausalLMOutput(loss=logits.mean(), logits=logits),
}


@pytest.mark.parametrize("own", LAYOUTS)
@pytest.mark.parametrize("other", LAYOUTS)
def test_logits_are_found_in_every_layout_of_both_networks(own, other):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 6, 5, generator=generator) for _ in range(2))
    labels = torch.zeros(4, 6).long()
    loss, _ = one_step(Fixed(student, LAYOUTS[own]), Fixed(teacher, LAYOUTS[other]), labels)
    assert loss == pytest.approx(dense_reference(student, teacher, labels == 0, -1)[0], rel=1e-5)


def test_an_output_key_leads_to_one_of_several_and_a_tensor_needs_none():
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    labels = torch.zeros(4).long()
    two = Fixed(student, lambda logits: (0 * logits, logits))
    value = dense_reference(student, teacher, labels == 0, -1)[0]
    assert one_step(two, Fixed(teacher), labels, output_key=1)[0] == pytest.approx(value, rel=1e-5)
    with pytest.raises(TypeError, match="output, dict with the keys x, has nothing at output_key='logits'"):
        one_step(Fixed(student, lambda logits: {"x": logits}), Fixed(teacher), labels, output_key="logits")


def gpt2():
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 6, "vocab_size": 11}
    dropouts = dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], 0.0)
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, **dropouts, bos_token_id=1, eos_token_id=2))


@pytest.mark.parametrize("length", [6, 11])
@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("return_dict", [True, False])
def test_a_language_model_learns_over_its_vocabulary_at_the_shifted_labels_that_count(length, smoothed, return_dict):
    torch.manual_seed(0)
    models = [gpt2() for _ in range(2)]
    for model in models:
        model.transformer.wpe = nn.Embedding(12, 16)
        model.config.return_dict = return_dict
    tokens = torch.randint(0, 11, (3, length))
    labels = tokens.masked_fill(torch.arange(length) >= torch.tensor([[4], [length], [2]]), -100)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
    student, teacher = (HuggingFaceModel(model) for model in models)
    with torch.no_grad():
        own, other = (model(input_ids=tokens, return_dict=True).logits for model in models)
    counted = torch.cat([labels[:, 1:] != -100, torch.zeros(3, 1, dtype=torch.bool)], 1)
    losses = Losses()
    algorithms = [Distillation(teacher, weight=1), *([LabelSmoothing(0.1)] if smoothed else [])]
    fit(algorithms, model=student, loader=[batch], device_train_microbatch_size=100, steps=1, callbacks=[losses])
    assert losses.seen[0] == pytest.approx(dense_reference(own, other, counted, -1)[0], rel=1e-5)


def masked_model(length):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tokens = torch.randint(0, 13, (3, length))
    config = hf.BertConfig(**sizes, **dropouts, vocab_size=13, max_position_embeddings=16)
    return lambda: hf.BertForMaskedLM(config), tokens, tokens.clone()


def translating_model(length):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    config = hf.T5Config(**sizes, vocab_size=13, decoder_start_token_id=0)
    return (
        lambda: hf.T5ForConditionalGeneration(config),
        torch.randint(0, 13, (3, 7)),
        torch.randint(0, 13, (3, length)),
    )


@pytest.mark.parametrize("kind", [masked_model, translating_model])
@pytest.mark.parametrize("length", [5, 13])  # 13 is the vocabulary's size too
@pytest.mark.parametrize("smoothed", [False, True])
def test_models_whose_labels_are_not_shifted_learn_at_the_very_labels_that_count(kind, length, smoothed):
    torch.manual_seed(0)
    make, tokens, labels = kind(length)
    labels.view(-1)[::3] = -100
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
    models = [make() for _ in range(2)]
    with torch.no_grad():
        own, other = (model(**batch).logits for model in models)
    student, teacher = (HuggingFaceModel(model) for model in models)
    losses, algorithms = Losses(), [Distillation(teacher, weight=1), *([LabelSmoothing(0.1)] if smoothed else [])]
    fit(algorithms, model=student, loader=[batch], device_train_microbatch_size=100, steps=1, callbacks=[losses])
    assert losses.seen[0] == pytest.approx(dense_reference(own, other, labels != -100, -1)[0], rel=1e-5)


def test_a_language_model_and_a_teacher_that_know_nothing_cost_the_logarithm_of_the_vocabulary():
    models = [gpt2() for _ in range(2)]
    for model in models:
        model.transformer.ln_f.weight.data.zero_()  # logits of 0
    tokens = torch.randint(0, 11, (3, 6))
    losses = Losses()
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
    student, teacher = (HuggingFaceModel(model) for model in models)
    algorithm = Distillation(teacher, output_key="logits", weight=1)
    fit([algorithm], model=student, loader=[batch], steps=1, callbacks=[losses], device_train_microbatch_size=3)
    assert losses.seen == [pytest.approx(math.log(11))]


@pytest.mark.parametrize("smoothed", [False, True])
def test_what_stands_in_the_padding_does_not_move_a_language_models_weights(smoothed):
    def weights(padding):
        torch.manual_seed(0)
        student, teacher = (HuggingFaceModel(gpt2()) for _ in range(2))
        torch.manual_seed(1)
        tokens = torch.randint(0, 11, (4, 6))
        real = torch.arange(6) < torch.tensor([[4], [6], [2], [5]])
        labels = tokens.masked_fill(~real, -100)
        batch = {"input_ids": tokens.where(real, padding), "attention_mask": real.long(), "labels": labels}
        algorithms = [Distillation(teacher, 2, 0.7), *([LabelSmoothing(0.1)] if smoothed else [])]
        return fit(algorithms, model=student, loader=[batch], steps=1, device_train_microbatch_size=4)

    torch.testing.assert_close(weights(3), weights(8), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("void", "ignored"), [(255, 255), (0, 0), (-1, -1)])
@pytest.mark.parametrize("smoothing", [[], [LabelSmoothing(0.0)]])
def test_pixels_that_the_models_loss_ignores_do_not_count_for_the_teacher_either(void, ignored, smoothing):
    images, labels = examples(segmentation=True)
    labels = labels.clamp(min=1)
    labels[:, ::2] = void
    torch.manual_seed(3)
    teacher, losses = nn.Conv2d(3, K, 1), Losses()
    model = classifier(nn.CrossEntropyLoss(ignore_index=ignored), segmentation=True)
    with torch.no_grad():
        own, other = model.module(images[:8]), teacher(images[:8])
    fit(
        [*smoothing, Distillation(teacher, weight=1)],
        model=model,
        loader=DataLoader(TensorDataset(images, labels), 8),
        steps=1,
        callbacks=[losses],
    )
    assert losses.seen[0] == pytest.approx(dense_reference(own, other, labels[:8] != void, 1)[0], rel=1e-5)


def test_void_pixels_and_their_logits_do_not_move_the_weights():
    images, labels = examples(segmentation=True)
    labels[:, ::2] = 255
    other = images.clone()
    other[:, :, ::2] = 9.0

    def weights(images, algorithms):
        model = classifier(lambda x, y: F.cross_entropy(x, y, ignore_index=255), segmentation=True)
        return fit(algorithms, model=model, loader=DataLoader(TensorDataset(images, labels), 8))

    torch.manual_seed(3)
    teacher = nn.Conv2d(3, K, 1)
    first = weights(images, [Distillation(teacher, 2, 0.6, ignore_index=255)])
    torch.testing.assert_close(weights(other, [Distillation(teacher, 2, 0.6, ignore_index=255)]), first)
    all_of_them = [weights(x, [Distillation(teacher, 2, 0.6, ignore_index=None)]) for x in (images, other)]
    assert (all_of_them[0] - all_of_them[1]).abs().max() > 1e-3


@pytest.mark.parametrize("algorithms", [[], [LabelSmoothing(0.1, ignore_index=-100)]])
def test_labels_that_are_all_ignored_give_a_loss_of_zero_and_no_step(algorithms):
    images, labels = examples()
    losses, model = Losses(), classifier(F.cross_entropy)
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    loader = DataLoader(TensorDataset(images, torch.full_like(labels, -100)), 8)
    after = fit(
        [*algorithms, Distillation(teacher_network(), weight=1)], model=model, loader=loader, callbacks=[losses]
    )
    assert losses.seen == [0, 0, 0]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_networks_that_change_their_input_in_place_learn_and_teach_as_others_do():
    class Halving(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x.mul_(0.5))

    class HalvingCopy(Halving):
        def forward(self, x):
            return self.network(x * 0.5)

    def weights(cls):
        loader = [tuple(part[:8].clone() for part in examples()) for _ in range(2)]
        model = ComposerClassifier(cls(classifier().module), num_classes=K)
        return fit(
            [Distillation(cls(teacher_network()), 2, 0.6)],
            model=model,
            loader=loader,
            device_train_microbatch_size=100,
            steps=2,
        )

    torch.testing.assert_close(weights(Halving), weights(HalvingCopy), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "labels", "error", "message"),
    [
        (
            {},
            torch.zeros(4, 9).long(),
            TargetError,
            r"must be integers \(4,\), but are \(4, 9\).*target_key.*ignore_index=None",
        ),
        ({"target_key": 3}, torch.zeros(4).long(), TargetError, "nothing at target_key=3 in the batch, tuple of 2"),
        ({"target_key": 0}, torch.zeros(4).long(), TargetError, r"but are \(4, 1\) of torch.float32"),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_the_way_out(options, labels, error, message):
    with pytest.raises(error, match=message):
        one_step(Fixed(torch.randn(4, 5)), Fixed(torch.randn(4, 5)), labels, **options)


@pytest.mark.parametrize("loss", [F.cross_entropy, soft_cross_entropy])
def test_labels_that_a_partial_of_the_loss_ignores_do_not_count_for_the_teacher(loss):
    def weights(loss_fn):
        return fit([Distillation(teacher_network(), 2, 0.6)], model=classifier(loss_fn))

    torch.testing.assert_close(
        weights(functools.partial(loss, ignore_index=0)), weights(nn.CrossEntropyLoss(ignore_index=0))
    )


def test_a_student_without_logits_is_refused():
    algorithms = [Distillation(teacher_network()), LabelSmoothing(0.1, logits="never")]
    with pytest.raises(TeacherError, match=r"LabelSmoothing\(logits='never'\) .* drop logits='never'"):
        fit(algorithms)


def test_labels_of_one_column_are_one_label_each():
    student, teacher, labels = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([[1], [-100], [2], [0]])
    value = dense_reference(student, teacher, labels[:, 0] >= 0, -1)[0]
    assert one_step(Fixed(student), Fixed(teacher), labels)[0] == pytest.approx(value, rel=1e-5)


def test_a_plain_network_cannot_teach_from_a_dict_without_an_input_key():
    batch = {"input_ids": torch.zeros(4, 3), "labels": torch.zeros(4).long()}
    student = Fixed(torch.randn(4, 5))
    with pytest.raises(
        TeacherError, match=r"nothing at input_key=0 .*keys input_ids, labels: .*HuggingFaceModel\(teacher\)"
    ):
        one_step(student, nn.Linear(3, 5), batch["labels"], batch=batch)
    one_step(student, nn.Linear(3, 5), batch["labels"], batch=batch, input_key="input_ids")


def test_class_dim_may_not_be_the_dimension_of_examples():
    with pytest.raises(ValueError, match="class_dim must be 1 or -1, but is 0"):
        Distillation(teacher_network(), class_dim=0)


@pytest.mark.parametrize(("dtype", "label", "ignore_index"), [(torch.uint8, 156, -100), (torch.int8, 7, 263)])
def test_a_label_is_ignored_by_its_value_and_not_by_what_wraps_around_in_its_type(dtype, label, ignore_index):
    student, teacher = torch.randn(4, 160), torch.randn(4, 160)
    labels = torch.tensor([label, 3, 4, 5], dtype=dtype)
    value = dense_reference(student, teacher, torch.ones(4, dtype=torch.bool), -1)[0]
    loss, _ = one_step(Fixed(student), Fixed(teacher), labels, ignore_index=ignore_index)
    assert loss == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 3, 3)])
def test_fewer_than_two_classes_are_refused(shape):
    labels = torch.zeros(shape[:1] + shape[2:]).long()
    with pytest.raises(DiagnosticsError, match=r"at least 2 classes.*give both networks two logits"):
        one_step(Fixed(torch.randn(shape)), Fixed(torch.randn(shape)), labels, class_dim=1 if len(shape) > 1 else None)


@pytest.mark.parametrize("smoothed", [False, True])
def test_several_labels_per_example_are_refused(smoothed):
    rows = torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 1, 0, 0]])
    student = Fixed(torch.randn(2, 5), loss=lambda logits, batch: F.binary_cross_entropy_with_logits(logits, batch[1]))
    algorithms = [Distillation(Fixed(torch.randn(2, 5))), *([LabelSmoothing(0.1, kind="binary")] if smoothed else [])]
    with pytest.raises(TargetError, match="a row of the target sums to 2.* mutually exclusive classes"):
        fit(algorithms, model=student, loader=[(torch.zeros(2, 1), rows)], device_train_microbatch_size=2, steps=1)


def test_several_labels_per_example_that_come_later_are_refused_on_the_cpu():
    one, several = torch.eye(5)[:2], torch.ones(2, 5)
    student = Fixed(torch.randn(2, 5), loss=lambda logits, batch: F.binary_cross_entropy_with_logits(logits, batch[1]))
    batches = [(torch.zeros(2, 1), rows) for rows in (one, several)]
    with pytest.raises(TargetError, match="a row of the target sums to 5"):
        fit(
            [Distillation(Fixed(torch.randn(2, 5)))],
            model=student,
            loader=batches,
            device_train_microbatch_size=2,
            steps=2,
        )
