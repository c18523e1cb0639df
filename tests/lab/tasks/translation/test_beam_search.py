"""Beam search: against greedy decoding, exhaustive search, and the network without its cache."""

import itertools

import pytest
import torch

from composer_ls.errors import InputError
from composer_ls.lab.tasks.translation.beam_search import beam_search
from composer_ls.lab.tasks.translation.networks import StepByStep, Transformer
from composer_ls.lab.tasks.translation.subwords import BEGIN, END, PAD

E, B = 0, 1  # the toy's end and begin; the other ids are words


class Toy:
    """A model whose logits after every prefix of every sentence are random numbers of its own."""

    def __init__(self, sentences, classes, seed=0, spread=2.0):
        self.seeds = [seed * 1000 + index for index in range(sentences)]
        self.prefixes = [[()] for _ in range(sentences)]
        self.classes, self.spread = classes, spread
        self.asked = 0

    def logits(self, seed, prefix):
        generator = torch.Generator().manual_seed(hash((seed, prefix)) % 2**31)
        return torch.randn(self.classes, generator=generator) * self.spread

    def advance(self, tokens):
        first = len(self.prefixes[0][0]) == 0 and self.asked == 0
        self.asked += 1
        if not first:
            self.prefixes = [
                [(*prefix, token) for prefix, token in zip(prefixes, row, strict=True)]
                for prefixes, row in zip(self.prefixes, tokens.tolist(), strict=True)
            ]
        return torch.stack(
            [
                torch.stack([self.logits(seed, prefix) for prefix in prefixes])
                for seed, prefixes in zip(self.seeds, self.prefixes, strict=True)
            ]
        )

    def keep(self, sentences, parents):
        self.seeds = [self.seeds[index] for index in sentences.tolist()]
        self.prefixes = [
            [self.prefixes[index][parent] for parent in row]
            for index, row in zip(sentences.tolist(), parents.tolist(), strict=True)
        ]


def log_probabilities(toy, seed, prefix, temperature):
    logits = (toy.logits(seed, prefix) / temperature).log_softmax(-1)
    logits[B] = -torch.inf
    return logits


def score(toy, seed, words, limit, penalty, temperature):
    total = sum(
        log_probabilities(toy, seed, words[:place], temperature)[word].item() for place, word in enumerate(words)
    )
    total += log_probabilities(toy, seed, words, temperature)[E].item()
    return total / (len(words) + 1) ** penalty


def exhaustive(toy, seed, limit, penalty, temperature):
    words = range(2, toy.classes)
    candidates = [
        sequence for length in range(limit + 1) for sequence in itertools.product(words, repeat=length)
    ]  # every sentence of at most `limit` words
    return max(candidates, key=lambda words: score(toy, seed, words, limit, penalty, temperature))


def greedy(toy, seed, limit):
    words = ()
    while len(words) < limit:
        word = int(log_probabilities(toy, seed, words, 1.0).argmax())
        if word == E:
            break
        words = (*words, word)
    return words


@pytest.mark.parametrize("seed", range(5))
def test_beam_1_is_greedy_decoding(seed):
    limits = torch.tensor([6, 3, 8, 1])
    found, _ = beam_search(Toy(4, 7, seed), limits, begin=B, end=E, beam=1)
    toy = Toy(4, 7, seed)
    expected = [greedy(toy, number, limit) for number, limit in zip(toy.seeds, limits.tolist(), strict=True)]
    assert [tuple(row) for row in found] == expected


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_beam_as_wide_as_the_vocabulary_searches_all_single_words(penalty, temperature):
    limits = torch.ones(6, dtype=torch.int64)
    found, scores = beam_search(
        Toy(6, 6, 3), limits, begin=B, end=E, beam=6, length_penalty=penalty, temperature=temperature
    )
    toy = Toy(6, 6, 3)
    expected = [exhaustive(toy, seed, 1, penalty, temperature) for seed in toy.seeds]
    assert [tuple(row) for row in found] == expected
    best = [score(toy, seed, words, 1, penalty, temperature) for seed, words in zip(toy.seeds, expected, strict=True)]
    assert scores == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_as_wide_as_all_sequences_of_the_vocabulary_is_exhaustive_search(seed, penalty):
    limits, classes = torch.tensor([3, 2, 3]), 5
    found, scores = beam_search(
        Toy(3, classes, seed, 1.0), limits, begin=B, end=E, beam=classes**3, length_penalty=penalty, temperature=0.7
    )
    toy = Toy(3, classes, seed, 1.0)
    expected = [
        exhaustive(toy, number, limit, penalty, 0.7) for number, limit in zip(toy.seeds, [3, 2, 3], strict=True)
    ]
    assert [tuple(row) for row in found] == expected
    best = [
        score(toy, number, words, limit, penalty, 0.7)
        for number, words, limit in zip(toy.seeds, expected, [3, 2, 3], strict=True)
    ]
    assert scores == pytest.approx(best, abs=1e-5)


def test_a_higher_length_penalty_never_shortens_what_exhaustive_search_finds():
    limits = torch.full((8,), 3)
    lengths = []
    for penalty in (0.0, 1.0, 2.0):
        found, _ = beam_search(Toy(8, 4, 1), limits, begin=B, end=E, beam=64, length_penalty=penalty)
        lengths.append([len(row) for row in found])
    assert all(a <= b <= c for a, b, c in zip(*lengths, strict=True))
    assert sum(lengths[0]) < sum(lengths[2])


def test_sentences_that_are_done_are_not_computed_any_more():
    class Counting(Toy):
        rows = 0

        def advance(self, tokens):
            Counting.rows += len(tokens)
            return super().advance(tokens)

    beam_search(Counting(2, 5), torch.tensor([0, 9]), begin=B, end=E, beam=1)
    one_step = 2
    assert Counting.rows <= one_step + 9


def test_forbidden_subwords_never_stand_in_a_hypothesis():
    found, _ = beam_search(Toy(8, 6), torch.full((8,), 5), begin=B, end=E, beam=3, forbidden=(2, 3))
    assert not {2, 3, B} & {token for row in found for token in row}


@pytest.mark.parametrize(
    ("option", "value"),
    [("beam", 0), ("length_penalty", -1.0), ("temperature", 0.0), ("temperature", float("nan"))],
)
def test_an_option_out_of_range_is_named(option, value):
    with pytest.raises(InputError, match=f"{option} is {value}, but must be"):
        beam_search(Toy(1, 4), torch.tensor([2]), begin=B, end=E, **{option: value})


class Uncached:
    """The network asked about whole prefixes again in each step."""

    def __init__(self, network, source):
        self.network, self.source, self.prefixes = network, source, None

    def advance(self, tokens):
        tokens = tokens[..., None]
        self.prefixes = tokens if self.prefixes is None else torch.cat([self.prefixes, tokens], 2)
        sentences, beams, length = self.prefixes.shape
        source = self.source.repeat_interleave(beams, 0)
        logits = self.network((source, self.prefixes.reshape(-1, length)))[..., -1]
        return logits.view(sentences, beams, -1)

    def keep(self, sentences, parents):
        self.source = self.source[sentences]
        index = parents[..., None].expand(-1, -1, self.prefixes.shape[2])
        self.prefixes = self.prefixes[sentences].gather(1, index)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = Transformer(vocabulary=23, width=16, heads=2, layers=2, feedforward=32, longest=20).eval()
    with torch.no_grad():  # confident enough that hypotheses differ
        network.embeddings.weight *= 3
    return network


SOURCE = torch.tensor([[5, 6, 7, 8, END], [9, END, PAD, PAD, PAD], [10, 11, 12, END, PAD]])


@pytest.mark.parametrize("beam", [1, 3, 23])
def test_the_cache_changes_nothing(network, beam):
    limits = torch.tensor([12, 5, 9])
    options = {"begin": BEGIN, "end": END, "beam": beam, "forbidden": (PAD,)}
    found, scores = beam_search(StepByStep(network, SOURCE), limits, **options)
    expected, expected_scores = beam_search(Uncached(network, SOURCE), limits, **options)
    assert found == expected
    assert scores == pytest.approx(expected_scores, abs=1e-4)


def test_a_sentence_is_translated_alike_in_whatever_batch(network):
    limits = torch.tensor([12, 5, 9])
    options = {"begin": BEGIN, "end": END, "beam": 4, "forbidden": (PAD,)}
    together, _ = beam_search(StepByStep(network, SOURCE), limits, **options)
    for index, length in enumerate((5, 2, 4)):
        source = SOURCE[index : index + 1, :length]
        alone, _ = beam_search(StepByStep(network, source), limits[index : index + 1], **options)
        assert alone == [together[index]]
