"""Nothing is smoothed twice unless requested."""

import functools
import warnings
from types import SimpleNamespace

import composer.algorithms
import pytest
import torch
from composer.models import ComposerClassifier, ComposerModel
from timm.data.mixup import FastCollateMixup, Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate
from trainer_support import K, RecordingLoss, classifier, examples, fit

from composer_ls import CrossEntropyLoss, LabelSmoothing, cross_entropy
from composer_ls.composition import DoubleSmoothingError
from composer_ls.composition.conflicts import conflicts_with_algorithms


class OwnLoss(ComposerModel):
    """A model with its own loss, as users write them."""

    def __init__(self, criterion=None, label_smoothing=0.0):
        super().__init__()
        self.layer = nn.Linear(192, K)
        self.criterion, self.label_smoothing = criterion, label_smoothing

    def forward(self, batch):
        return self.layer(batch[0].flatten(1))

    def loss(self, outputs, batch):
        if self.criterion is not None:
            return self.criterion(outputs, batch[1])
        return F.cross_entropy(outputs, batch[1], label_smoothing=self.label_smoothing)


class LiteralLoss(OwnLoss):
    def loss(self, outputs, batch):
        return F.cross_entropy(
            outputs,
            batch[1],
            label_smoothing=0.1,
        )


class DictOfLosses(OwnLoss):
    def __init__(self):
        super().__init__()
        self.criteria = {"ce": nn.CrossEntropyLoss(label_smoothing=0.1)}

    def loss(self, outputs, batch):
        return self.criteria["ce"](outputs, batch[1])


class CallsAMethod(OwnLoss):
    def loss(self, outputs, batch):
        return self.distance(outputs, batch[1])

    def distance(self, outputs, labels):
        return F.cross_entropy(outputs, labels, label_smoothing=1e-1)


class CallsItsParent(LiteralLoss):
    def loss(self, outputs, batch):
        return 2 * super().loss(outputs, batch)


AMOUNT = 0.1
GLOBAL_LOSS = nn.CrossEntropyLoss(label_smoothing=0.1)


def helper(outputs, labels):
    return F.cross_entropy(outputs, labels, label_smoothing=AMOUNT)


class CallsAHelper(OwnLoss):
    def loss(self, outputs, batch):
        return helper(outputs, batch[1])


class CallsAGlobal(OwnLoss):
    def loss(self, outputs, batch):
        return GLOBAL_LOSS(outputs, batch[1])


class OwnModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.settings = SimpleNamespace(amount=0.1)

    def forward(self, outputs, labels):
        return F.cross_entropy(outputs, labels, label_smoothing=self.settings.amount)


SMOOTHING_MODELS = {
    "dict of losses": DictOfLosses,
    "method that loss calls": CallsAMethod,
    "parent's loss": CallsItsParent,
    "function that loss calls": CallsAHelper,
    "global module": CallsAGlobal,
    "module of the user's": lambda: classifier(OwnModule()),
    "CrossEntropyLoss as loss_fn": lambda: classifier(nn.CrossEntropyLoss(label_smoothing=0.1)),
    "our CrossEntropyLoss": lambda: classifier(CrossEntropyLoss(label_smoothing=0.1)),
    "partial": lambda: classifier(functools.partial(F.cross_entropy, label_smoothing=0.1)),
    "partial of a partial": lambda: classifier(
        functools.partial(functools.partial(F.cross_entropy, label_smoothing=0.1), reduction="mean")
    ),
    "lambda": lambda: classifier(lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1)),
    "closure": lambda: classifier(
        (lambda criterion: lambda x, y: criterion(x, y))(nn.CrossEntropyLoss(label_smoothing=0.1))
    ),
    "timm": lambda: classifier(LabelSmoothingCrossEntropy(0.1)),
    "module attribute": lambda: OwnLoss(nn.CrossEntropyLoss(label_smoothing=0.1)),
    "partial attribute": lambda: OwnLoss(functools.partial(F.cross_entropy, label_smoothing=0.1)),
    "attribute of self": lambda: OwnLoss(label_smoothing=0.1),
    "literal in the loss method": LiteralLoss,
}


@pytest.mark.parametrize("model", SMOOTHING_MODELS.values(), ids=SMOOTHING_MODELS)
def test_a_loss_that_smooths_is_refused_with_both_places_and_the_line_to_change(model):
    with pytest.raises(DoubleSmoothingError) as refusal:
        fit([LabelSmoothing(0.1)], model=model())
    message = str(refusal.value)
    assert "LabelSmoothing(smoothing=0.1) in algorithms" in message
    assert "by model" in message
    assert "smoothing=0.1" in message.partition("and by")[2]
    assert "Keep one: " in message
    assert "on_conflict='warn'" in message


def test_the_line_of_a_literal_is_named():
    with pytest.raises(DoubleSmoothingError, match=r"test_conflicts.py:\d+"):
        fit([LabelSmoothing(0.1)], model=LiteralLoss())


@pytest.mark.parametrize("model", SMOOTHING_MODELS.values(), ids=SMOOTHING_MODELS)
def test_smoothing_zero_is_no_conflict(model):
    if "timm" not in str(model().__dict__):
        assert torch.isfinite(fit([LabelSmoothing(0.0)], model=OwnLoss(label_smoothing=0.1))).all()


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        functools.partial(F.cross_entropy, label_smoothing=0.0),
        SoftTargetCrossEntropy(),
        F.cross_entropy,
        cross_entropy,  # its docstring shows label_smoothing=0.1
    ],
)
def test_a_loss_that_does_not_smooth_is_no_conflict(loss):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*smoothed")
        assert torch.isfinite(fit([LabelSmoothing(0.1)], model=classifier(loss))).all()


@pytest.mark.parametrize("other", [composer.algorithms.LabelSmoothing, LabelSmoothing])
@pytest.mark.parametrize("first", [False, True])
def test_a_second_smoothing_algorithm_is_refused(other, first):
    algorithms = [other(0.2)]
    algorithms.insert(0 if first else 1, LabelSmoothing(0.1))
    with pytest.raises(DoubleSmoothingError, match="another .* LabelSmoothing.*remove it from algorithms"):
        fit(algorithms)


def test_two_smoothers_of_different_targets_are_no_conflict():
    a, b = LabelSmoothing(0.1, target_key=1), LabelSmoothing(0.2, target_key=2)
    assert conflicts_with_algorithms([a, b], a) == []


def test_subclasses_of_smoothers_smooth_too():
    class Mine(LabelSmoothing):
        pass

    with pytest.raises(DoubleSmoothingError, match="another composer_ls LabelSmoothing"):
        fit([Mine(0.1), LabelSmoothing(0.1)])


def test_a_loss_that_training_does_not_use_is_no_conflict():
    model = OwnLoss(nn.CrossEntropyLoss())
    model.eval_loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    model.smoother = SimpleNamespace(smoothing=0.9)
    assert torch.isfinite(fit([LabelSmoothing(0.1)], model=model)).all()


def test_an_image_transform_that_smooths_images_is_no_conflict():
    class GaussianSmooth:
        smoothing = 0.5

        def __call__(self, samples):
            return default_collate(samples)

    loader = DataLoader(TensorDataset(*examples()), 8, collate_fn=GaussianSmooth())
    assert torch.isfinite(fit([LabelSmoothing(0.1)], loader=loader)).all()


def test_a_target_transform_behind_a_subset_is_found():
    data = TensorDataset(*examples())
    data.target_transform = functools.partial(F.cross_entropy, label_smoothing=0.1)
    with pytest.raises(DoubleSmoothingError, match="data set's target_transform"):
        fit([LabelSmoothing(0.1)], loader=DataLoader(Subset(data, range(24)), 8))


def collate_with(mix):
    return lambda samples: mix(*default_collate(samples))


global_mix = Mixup(num_classes=K)


def collate_with_a_global(samples):
    return global_mix(*default_collate(samples))


class Collate:
    def __init__(self, mix):
        self.mix = mix

    def __call__(self, samples):
        return self.mix(*default_collate(samples))

    def method(self, samples):
        return self(samples)


SMOOTHING_COLLATES = {
    "closure": collate_with(Mixup(num_classes=K)),
    "global": collate_with_a_global,
    "object": Collate(Mixup(num_classes=K)),
    "method": Collate(Mixup(num_classes=K)).method,
    "partial": functools.partial(lambda samples, mix: mix(*default_collate(samples)), mix=Mixup(num_classes=K)),
    "FastCollateMixup": FastCollateMixup(num_classes=K),
    "nested": collate_with(functools.partial(lambda mix, x, y: mix[0](x, y), [Mixup(num_classes=K)])),
}


@pytest.mark.parametrize("collate", SMOOTHING_COLLATES.values(), ids=SMOOTHING_COLLATES)
def test_a_collate_function_that_smooths_is_refused(collate):
    loader = DataLoader(TensorDataset(*examples()), 8, collate_fn=collate)
    with pytest.raises(
        DoubleSmoothingError, match=r"collate_fn.*Mixup\(label_smoothing=0.1\).*set label_smoothing=0.0 in that"
    ):
        fit([LabelSmoothing(0.1)], loader=loader)


def test_on_conflict_warn_goes_on_with_both():
    loss = RecordingLoss()
    loader = DataLoader(TensorDataset(*examples()), 8, collate_fn=SMOOTHING_COLLATES["closure"])
    with pytest.warns(UserWarning, match="smoothed twice.*Mixup"):
        fit([LabelSmoothing(0.1, on_conflict="warn")], model=classifier(loss), loader=loader)
    assert loss.smoothed == pytest.approx([0.19] * 3, abs=1e-6)


def test_dense_targets_that_look_smoothed_give_a_warning_that_says_why():
    rows = 0.9 * F.one_hot(examples()[1], K) + 0.1 / K
    loader = DataLoader(TensorDataset(examples()[0], rows), 8)
    with pytest.warns(UserWarning, match="looks smoothed before .* smallest entries are positive.*label_smoothing=0.0"):
        fit([LabelSmoothing(0.1)], loader=loader)


def test_dense_targets_that_are_only_mixed_give_no_warning():
    rows = F.one_hot(examples()[1], K).float()
    loader = DataLoader(TensorDataset(examples()[0], 0.6 * rows + 0.4 * rows.flip(0)), 8)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*looks smoothed")
        assert torch.isfinite(fit([LabelSmoothing(0.1)], loader=loader)).all()


def test_a_refused_trainer_leaves_the_models_loss_alone():
    model = classifier(nn.CrossEntropyLoss(label_smoothing=0.1))
    loss = model._loss_fn
    with pytest.raises(DoubleSmoothingError):
        fit([LabelSmoothing(0.1)], model=model)
    assert model._loss_fn is loss


def test_a_large_data_set_is_not_searched():
    class Huge(TensorDataset):
        touched = 0

        def __getitem__(self, index):
            Huge.touched += 1
            return super().__getitem__(index)

    data = Huge(*examples())
    data.samples = list(range(10**6))
    model = ComposerClassifier(nn.Sequential(nn.Flatten(), nn.Linear(192, K)), num_classes=K)
    fit([LabelSmoothing(0.1)], model=model, loader=DataLoader(data, 8), steps=1)
    assert Huge.touched == 8
