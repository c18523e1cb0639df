"""The network: a Transformer with the normalisation before each part, for training and, with a cache, for translating."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composer_ls.lab.tasks.translation.subwords import PAD

__all__ = ["StepByStep", "Transformer"]


class Transformer(nn.Module):
    """An encoder of one sentence and a decoder of the other, with one table of embeddings for both and for the output.

    Args:
        vocabulary: K, the number of subwords of both languages.
        width: Of embeddings and layers.
        heads: Of each attention.
        layers: Of the encoder, and of the decoder.
        feedforward: Width within each layer.
        dropout: In [0, 1).
        longest: The most subwords that a sentence may have.

    Example:
        >>> import torch
        >>> from composer_ls.lab.tasks.translation.networks import Transformer
        >>> network = Transformer(vocabulary=20, width=16, heads=2, layers=1)
        >>> source, target = torch.tensor([[5, 6, 2]]), torch.tensor([[1, 7]])
        >>> network((source, target)).shape
        torch.Size([1, 20, 2])

    References:
        Vaswani et al., 2017, https://arxiv.org/abs/1706.03762; Xiong et al., 2020, https://arxiv.org/abs/2002.04745
        (normalisation first); Press and Wolf, 2017, https://arxiv.org/abs/1608.05859 (tied embeddings).

    """

    positions: Tensor

    def __init__(
        self,
        vocabulary: int,
        width: int = 256,
        heads: int = 4,
        layers: int = 3,
        feedforward: int = 1024,
        dropout: float = 0.1,
        longest: int = 128,
    ) -> None:
        super().__init__()
        self.longest = longest
        self.embeddings = nn.Embedding(vocabulary, width)
        self.register_buffer("positions", _sines(longest, width), persistent=False)
        self.dropout = nn.Dropout(dropout)
        sizes = (width, heads, feedforward, dropout)
        self.encoder = nn.ModuleList(_EncoderLayer(*sizes) for _ in range(layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(_DecoderLayer(*sizes) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.apply(_initialise)
        nn.init.normal_(self.embeddings.weight, std=width**-0.5)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """The logits of each next subword, given those before it.

        Args:
            inputs: Source ``(N, S)`` and target ``(N, T)``, padded behind; the target begins with BEGIN.

        Returns:
            ``(N, K, T)``, a view of memory with the classes last.

        """
        source, target = inputs
        memory, mask = self.encode(source)
        x = self._embedded(target, 0)
        for layer in self.decoder:
            x = layer(x, memory, mask)
        return self._logits(x).movedim(-1, 1)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(N, S, width)`` of source sentences ``(N, S)``, and where they are none, ``(N, 1, 1, S)``."""
        mask = (source != PAD)[:, None, None]
        x = self._embedded(source, 0)
        for layer in self.encoder:
            x = layer(x, mask)
        return self.encoder_norm(x), mask

    def _embedded(self, tokens: Tensor, start: int) -> Tensor:
        places = self.positions[start : start + tokens.shape[1]]
        return self.dropout(self.embeddings(tokens) * math.sqrt(self.embeddings.embedding_dim) + places)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self.decoder_norm(x), self.embeddings.weight)


class StepByStep:
    """Decode with one subword a step: keys and values of the steps before are kept, those of the source made once.

    It is what :func:`~composer_ls.lab.tasks.translation.beam_search.beam_search` asks of a model.

    Args:
        network: In evaluation mode.
        source: Sentences ``(N, S)``, padded behind.

    """

    def __init__(self, network: Transformer, source: Tensor) -> None:
        self._network = network
        memory, self._mask = network.encode(source)
        self._memory = [layer.cross.keys_values(memory) for layer in network.decoder]
        self._past: list[tuple[Tensor, Tensor] | None] = [None] * len(network.decoder)
        self._step = 0

    def advance(self, tokens: Tensor) -> Tensor:
        """The logits ``(N, B, K)`` of what follows ``tokens`` ``(N, B)``, the last subword of B hypotheses a sentence."""
        network, shape = self._network, tokens.shape
        x = network._embedded(tokens.reshape(-1, 1), self._step)
        for index, layer in enumerate(network.decoder):
            x, self._past[index] = layer.step(x, self._past[index], self._memory[index], self._mask)
        self._step += 1
        return network._logits(x).view(*shape, -1)

    def keep(self, sentences: Tensor, parents: Tensor) -> None:
        """Go on with some of the sentences, and in each with some of its hypotheses.

        Args:
            sentences: Which, ``(N',)``.
            parents: Of each of their B' hypotheses the one it continues, ``(N', B')``.

        """
        rows = None
        for index, past in enumerate(self._past):
            if past is None:
                continue
            if rows is None:
                hypotheses = past[0].shape[0] // self._mask.shape[0]
                rows = (sentences[:, None] * hypotheses + parents).reshape(-1)
            self._past[index] = past[0][rows], past[1][rows]
        if len(sentences) < self._mask.shape[0]:
            self._mask = self._mask[sentences]
            self._memory = [(keys[sentences], values[sentences]) for keys, values in self._memory]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, heads, S, width of a head)`` each, of features ``(N, S, width)``."""
        keys, values = self.key_value(x).chunk(2, -1)
        return self._split(keys), self._split(values)

    def forward(
        self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(
            self._split(self.query(x)), *keys_values, attn_mask=mask, dropout_p=dropout, is_causal=causal
        )
        return self.out(found.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), _Attention(width, heads, dropout)
        self.feedforward, self.dropout = _feedforward(width, feedforward, dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        normed = self.norm(x)
        x = x + self.dropout(self.attention(normed, self.attention.keys_values(normed), mask))
        return x + self.feedforward(x)


class _DecoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), _Attention(width, heads, dropout)
        self.cross_norm, self.cross = nn.LayerNorm(width), _Attention(width, heads, dropout)
        self.feedforward, self.dropout = _feedforward(width, feedforward, dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        normed = self.norm(x)
        x = x + self.dropout(self.attention(normed, self.attention.keys_values(normed), causal=True))
        x = x + self.dropout(self.cross(self.cross_norm(x), self.cross.keys_values(memory), mask))
        return x + self.feedforward(x)

    def step(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None, memory: tuple[Tensor, Tensor], mask: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One place further, ``(N * B, 1, width)``, and the keys and values up to there."""
        normed = self.norm(x)
        keys, values = self.attention.keys_values(normed)
        if past is not None:
            keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
        x = x + self.attention(normed, (keys, values))
        hypotheses = x.view(len(mask), -1, x.shape[-1])  # all of a sentence ask its one source
        x = (hypotheses + self.cross(self.cross_norm(hypotheses), memory, mask)).view_as(x)
        return x + self.feedforward(x), (keys, values)


def _feedforward(width: int, inner: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        *(nn.LayerNorm(width), nn.Linear(width, inner), nn.ReLU(), nn.Dropout(dropout)),
        *(nn.Linear(inner, width), nn.Dropout(dropout)),
    )


def _sines(places: int, width: int) -> Tensor:
    angles = torch.arange(places)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
