"""Beam search over any model that goes one subword further at a time."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from composer_ls.errors import InputError

__all__ = ["Stepwise", "beam_search", "check_search"]


class Stepwise(Protocol):
    """A model in the midst of decoding N sentences, with B hypotheses for each."""

    def advance(self, tokens: Tensor) -> Tensor:
        """The logits ``(N, B, K)`` of what follows ``tokens`` ``(N, B)``, the last of each hypothesis."""

    def keep(self, sentences: Tensor, parents: Tensor) -> None:
        """Go on with the N' given sentences, whose B' hypotheses continue those named by ``parents`` ``(N', B')``."""


@torch.no_grad()
def beam_search(
    model: Stepwise,
    limits: Tensor,
    *,
    begin: int,
    end: int,
    beam: int = 4,
    length_penalty: float = 1.0,
    temperature: float = 1.0,
    forbidden: tuple[int, ...] = (),
) -> tuple[list[list[int]], list[float]]:
    r"""The best hypothesis found for each of N sentences.

    A hypothesis of n subwords, ``end`` counted, scores :math:`\frac1{n^a}\sum_i \log p_i` with
    :math:`p = \mathrm{softmax}(x/T)`. In each step the ``beam`` best unfinished ones of a sentence go on; those that end
    are finished if they are among the ``beam`` best of all. A sentence is done once it has ``beam`` finished ones, or none
    that goes on can become better. Beam 1 is greedy decoding; a beam that holds every prefix is exhaustive search. Of
    sentences that are done nothing is computed any more, and what a sentence gets does not depend on the others.

    Args:
        model: Where to ask for logits; it is at the beginning of N sentences.
        limits: The most subwords of each hypothesis, ``end`` not counted, integer ``(N,)``.
        begin: What every hypothesis starts with; it is no part of it.
        end: What ends one.
        beam: B, how many hypotheses are followed.
        length_penalty: a. 0 prefers short hypotheses, 1 compares means a subword.
        temperature: T of the softmax, above 0.
        forbidden: Subwords that never stand in a hypothesis.

    Returns:
        The subwords of each hypothesis without ``end``, and its score.

    Raises:
        InputError: ``beam``, ``length_penalty`` or ``temperature`` is out of range.

    References:
        Wu et al., 2016, https://arxiv.org/abs/1609.08144, section 7; the penalty is that of OpenNMT and fairseq.

    """
    check_search(beam, length_penalty, temperature)
    device, count, longest = limits.device, len(limits), int(limits.max())
    best_score = torch.full((count,), -torch.inf, device=device)
    best_tokens = torch.full((count, longest + 1), end, device=device)
    finished = torch.zeros(count, dtype=torch.int64, device=device)

    alive = torch.arange(count, device=device)  # the sentences that go on, and of each its B hypotheses:
    tokens = torch.full((count, 1), begin, device=device)
    history = torch.empty((count, 1, 0), dtype=torch.int64, device=device)
    scores = torch.zeros((count, 1), device=device)
    for step in range(longest + 1):
        logits = model.advance(tokens).float() / temperature
        classes = logits.shape[-1]
        total = logits.log_softmax(-1)
        total[..., [begin, *forbidden]] = -torch.inf
        at_limit = limits[alive] <= step
        if bool(at_limit.any()):
            ends = total[at_limit, :, end]
            total[at_limit] = -torch.inf
            total[at_limit, :, end] = ends
        total = (scores[..., None] + total).flatten(1)
        scores, chosen = total.topk(min(2 * beam, total.shape[1]), dim=1)  # a hypothesis ends in one way only
        parents, tokens = chosen // classes, chosen % classes
        history = torch.cat([history.gather(1, parents[..., None].expand(-1, -1, step)), tokens[..., None]], 2)

        ended = (tokens == end) & scores.isfinite()
        counted = ended[:, :beam]
        value, place = (scores[:, :beam] / (step + 1) ** length_penalty).masked_fill(~counted, -torch.inf).max(1)
        better = value > best_score[alive]
        improved = alive[better]
        best_score[improved] = value[better]
        best_tokens[improved, : step + 1] = history[better, place[better]]
        best_tokens[improved, step + 1 :] = end
        finished[alive] += counted.sum(1)

        # Those that go on come first, in their order; a sentence has at least `beam` of them, if there are so many.
        scores = scores.masked_fill(tokens == end, -torch.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, order = scores[:, :beam], order[:, :beam]
        reachable = scores[:, 0] / (limits[alive] + 1) ** length_penalty  # log-probabilities only fall
        on = ((finished[alive] < beam) & (reachable > best_score[alive])).nonzero().flatten()
        if not len(on):
            break
        alive, scores, order = alive[on], scores[on], order[on]
        parents, tokens = parents[on].gather(1, order), tokens[on].gather(1, order)
        history = history[on].gather(1, order[..., None].expand(-1, -1, step + 1))
        model.keep(on, parents)
    rows = best_tokens.tolist()
    return [row[: row.index(end)] for row in rows], best_score.tolist()


def check_search(beam: int, length_penalty: float, temperature: float) -> None:
    """Refuse what :func:`beam_search` cannot work with."""
    if beam < 1:
        raise InputError(f"beam is {beam}, but must be at least 1, which is greedy decoding; 4 is usual")
    if not 0 <= length_penalty < float("inf"):
        raise InputError(f"length_penalty is {length_penalty}, but must be at least 0; 0.6 to 1 is usual")
    if not 0 < temperature < float("inf"):
        raise InputError(
            f"temperature is {temperature}, but must be more than 0; 1 leaves the probabilities as they are"
        )
