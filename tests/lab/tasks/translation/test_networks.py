"""The network: what it may see, and what padding must not change."""

import pytest
import torch

from composer_ls import LabelSmoothing, cross_entropy, smooth_labels
from composer_ls.lab.tasks.translation.batches import EncodedPairs, TokenBatches
from composer_ls.lab.tasks.translation.networks import Transformer
from composer_ls.lab.tasks.translation.subwords import END

PAIRS = EncodedPairs([[5, 6, 7, END], [8, END]], [[9, END], [10, 11, 12, END]])


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Transformer(vocabulary=17, width=16, heads=2, layers=2, feedforward=32, longest=12).eval()


def batch():
    return TokenBatches(PAIRS, batch_tokens=12, seed=None)[0]


def test_logits_have_the_classes_second_and_need_no_copy(network):
    inputs, labels = batch()
    logits = network(inputs)
    assert logits.shape == (2, 17, 4)
    assert logits.shape[::2] == labels.shape
    assert logits.movedim(1, -1).is_contiguous()


def test_a_subword_never_depends_on_those_after_it(network):
    (source, target), _ = batch()
    changed = target.clone()
    changed[:, 2:] = 3
    assert torch.allclose(network((source, target))[..., :2], network((source, changed))[..., :2], atol=1e-6)
    assert not torch.allclose(network((source, target))[..., 2], network((source, changed))[..., 2], atol=1e-3)


def test_padding_changes_nothing(network):
    (source, target), labels = batch()
    logits = network((source, target))
    for row, (length, out) in enumerate(zip((2, 4), (4, 2), strict=True)):
        del out
        width = int((source[row] != 0).sum())
        alone = network((source[row : row + 1, :width], target[row : row + 1, :length]))
        kept = int((labels[row] != -100).sum())
        assert torch.allclose(alone[0, :, :kept], logits[row, :, :kept], atol=1e-5)


def test_padded_places_get_no_gradient(network):
    inputs, labels = batch()
    logits = network(inputs).detach().requires_grad_()
    cross_entropy(logits, smooth_labels(logits, labels, 0.1)).backward()
    assert not logits.grad.movedim(1, -1)[labels == -100].any()
    assert logits.grad.movedim(1, -1)[labels != -100].abs().sum(-1).min() > 0


def test_the_smoothed_loss_is_that_of_the_subwords_that_count(network):
    inputs, labels = batch()
    logits = network(inputs)
    flat = logits.movedim(1, -1)[labels != -100]
    expected = torch.nn.functional.cross_entropy(flat, labels[labels != -100], label_smoothing=0.1)
    assert torch.allclose(cross_entropy(logits, smooth_labels(logits, labels, LabelSmoothing().smoothing)), expected)


def test_embeddings_of_both_languages_and_the_output_are_one_table(network):
    shapes = [tuple(parameter.shape) for parameter in network.parameters()]
    assert sum(17 in shape for shape in shapes) == 1


def test_a_batch_of_nothing_but_padding_costs_nothing_and_changes_nothing(network):
    (source, target), labels = batch()
    logits = network((source, target))
    loss = cross_entropy(logits, smooth_labels(logits, torch.full_like(labels, -100), 0.1))
    loss.backward()
    assert loss.item() == 0
    assert not any(parameter.grad.any() for parameter in network.parameters() if parameter.grad is not None)


def test_a_label_outside_the_vocabulary_is_refused(network):
    inputs, labels = batch()
    logits = network(inputs)
    with pytest.raises(ValueError, match="17"):
        smooth_labels(logits, labels.masked_fill(labels == END, 17), 0.1)
