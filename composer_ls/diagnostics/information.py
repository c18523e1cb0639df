"""How much the logits still tell about individual training examples: mutual information over augmentations."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from composer_ls.diagnostics.checks import as_tensor, check_finite
from composer_ls.diagnostics.inspection import evaluating, seeded
from composer_ls.errors import DiagnosticsError

__all__ = ["draw_logit_differences", "logit_mutual_information"]


def logit_mutual_information(draws: Tensor) -> float:
    r"""Mutual information between the index of an example and a number computed from its augmented image, in nats.

    Given the example, the number is modelled as Gaussian, with one mean per example and a common variance:

    .. math::
        \hat I = \frac1N \sum_x \Big[ -\frac{(f_x - \mu_x)^2}{2\sigma^2}
            - \log \frac1N \sum_{x'} \exp -\frac{(f_x - \mu_{x'})^2}{2\sigma^2} \Big],
        \quad \sigma^2 = \frac1N \sum_x (f_x - \mu_x)^2 .

    Each of the L draws of an example is :math:`f_x` in turn, with :math:`\mu_x` the mean of the other L - 1, and the L
    results are averaged. (A mean that included the draw itself would be biased toward it, and give
    :math:`\tfrac12\log\tfrac{L}{L-1}` nats for pure noise.)

    Args:
        draws: ``(N, L)``, L draws for each of N examples, as from :func:`draw_logit_differences`. L is at least 2; 6
            means one draw and a mean of five.

    Returns:
        A value between 0 (the number says nothing about the example) and log N (it identifies the example).

    Raises:
        DiagnosticsError: There are fewer than two examples or two draws, or values are NaN.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.information import logit_mutual_information
        >>> noise = 0.01 * torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
        >>> apart = torch.arange(100.0).unsqueeze(1) + noise
        >>> round(logit_mutual_information(apart), 3)  # log 100
        4.605

    References:
        Müller et al., 2019, https://arxiv.org/abs/1906.02629v3, section 4; earlier versions have another formula.

    """
    draws = as_tensor("draws", draws)
    if draws.ndim != 2 or len(draws) < 2 or draws.shape[1] < 2:
        raise DiagnosticsError(
            f"draws have shape {tuple(draws.shape)}, but must be (N, L): L draws, at least 2, for each of N examples, at "
            f"least 2"
        )
    check_finite("draws", draws)
    values = draws.double()
    others = (values.sum(1, keepdim=True) - values) / (values.shape[1] - 1)
    estimates = [_estimate(value, mean) for value, mean in zip(values.T, others.T, strict=True)]
    return max(0.0, sum(estimates) / len(estimates))


def _estimate(values: Tensor, means: Tensor) -> float:
    """The formula for one draw of each example."""
    variance = (values - means).square().mean().clamp_min(torch.finfo(torch.float64).tiny)
    # Without noise (a variance of 0) an example's own exponent is 0 and the others are 0 or -inf, as in the limit.
    own = -(values - means).square() / (2 * variance)
    of_all = [  # in chunks of examples against all of them, so that memory does not grow quadratically
        (-(part.unsqueeze(1) - means).square() / (2 * variance)).logsumexp(1)
        for part in values.split(max(1, 2**24 // len(means)))
    ]
    return (own - torch.cat(of_all) + math.log(len(values))).mean().item()


def draw_logit_differences(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    augment: Callable[[Tensor], Tensor],
    classes: tuple[int, int] = (0, 1),
    draws: int = 6,
    *,
    batch_size: int = 256,
    seed: int = 0,
) -> Tensor:
    """The difference of two logits for every image, under several random augmentations.

    The model runs in evaluation mode and without gradients. Its mode and PyTorch's random state are restored
    afterwards.

    Args:
        model: Maps images ``(N, ...)`` to logits ``(N, K)``.
        images: ``(N, ...)``, on the model's device.
        augment: Augments a batch of images, each independently, with PyTorch's random numbers.
        classes: The difference is the logit of the first class minus that of the second.
        draws: L, the number of augmentations per image.
        batch_size: Images per forward pass.
        seed: The seed of the augmentations.

    Returns:
        Float64 ``(N, draws)``, on the CPU.

    Raises:
        DiagnosticsError: The logits do not have these classes.

    Example:
        >>> import torch
        >>> from composer_ls.diagnostics.information import draw_logit_differences
        >>> shift = lambda images: images + torch.randn(len(images), 1)
        >>> draw_logit_differences(torch.nn.Linear(4, 3), torch.zeros(5, 4), shift, draws=6).shape
        torch.Size([5, 6])

    References:
        Müller et al., 2019, https://arxiv.org/abs/1906.02629, section 4: 300 images of each of two classes, crops and
        mirroring.

    """
    first, second = classes
    if draws < 1:
        raise DiagnosticsError(f"draws must be at least 1, but is {draws}; 6 are one draw and a mean of five")
    columns = []
    with seeded(seed, images.device), evaluating(model) if isinstance(model, nn.Module) else torch.no_grad():
        for _ in range(draws):
            parts = []
            for batch in images.split(batch_size):
                logits = model(augment(batch.clone()))  # augment may work in place
                if logits.ndim != 2 or not (0 <= first < logits.shape[1] and 0 <= second < logits.shape[1]):
                    raise DiagnosticsError(
                        f"the logits have shape {tuple(logits.shape)}, which lacks the classes {first} and {second}"
                    )
                parts.append((logits[:, first].double() - logits[:, second].double()).cpu())
            columns.append(torch.cat(parts))
    return torch.stack(columns, 1)
