"""Networks of transformers: new ones by the name of their type, and pretrained ones with their tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from composer_ls.errors import InputError, RecipeError
from composer_ls.lab.tasks.translation.packages import transformers
from composer_ls.lab.tasks.translation.schema import PREFIX, TranslationData, TranslationModel
from composer_ls.lab.tasks.translation.subwords import learn_tokenizer

__all__ = ["language_doubts", "load_network", "load_tokenizer", "make_network", "make_tokenizer", "positions"]

Refusal = Callable[[str], InputError]
"""Makes the error to raise from the reason."""


def make_tokenizer(model: TranslationModel, data: TranslationData, texts: list[str]) -> Any:
    """The tokenizer of a recipe: learnt from the texts, or the one that belongs to the pretrained weights."""
    if model.weights is None:
        return learn_tokenizer(texts, data.vocabulary, data.lowercase, data.longest)
    if data.lowercase:
        raise RecipeError(
            f"data.lowercase=true does not go with model.weights={model.weights}, whose tokenizer decides about capitals: "
            f"use data.lowercase=false"
        )
    tokenizer = load_tokenizer(Path(model.weights), _refusal(model))
    tokenizer.model_max_length = data.longest
    return tokenizer


def make_network(model: TranslationModel, data: TranslationData, tokenizer: Any) -> Any:
    """The network of a recipe, with new or pretrained weights and the recipe's search settings.

    Raises:
        RecipeError: An argument that the type's configuration does not have or that transformers refuses, weights that are
            of another type or do not fit the tokenizer, or fewer positions than sentences may have.

    """
    if model.weights is None:
        network = _new(model, tokenizer)
    else:
        network = load_network(Path(model.weights), tokenizer, _refusal(model), model)
    limit = positions(network.config)
    if limit is not None and limit < data.longest:
        raise RecipeError(
            f"data.longest={data.longest} is more than the {limit} positions of the network: use data.longest={limit}, or, "
            f"without model.weights, a larger model.arguments.max_position_embeddings"
        )
    search = network.generation_config
    search.num_beams, search.max_length, search.max_new_tokens = model.beam, data.longest, None
    search.length_penalty = (
        1.0 if model.beam == 1 else model.length_penalty
    )  # greedy search has no use for it, and saving would fail
    return network


def _new(model: TranslationModel, tokenizer: Any) -> Any:
    family = model.name.removeprefix(PREFIX)
    # The end token also starts a translation: the only choice that works for every type.
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    ids = {"pad_token_id": pad, "eos_token_id": end, "decoder_start_token_id": end}
    for key in model.arguments.keys() & {*ids, "vocab_size"}:
        raise RecipeError(f"model.arguments.{key} follows from the subwords: leave it out")
    _check_arguments(model, transformers.AutoConfig.for_model(family))
    try:
        config = transformers.AutoConfig.for_model(family, **model.arguments, **ids, vocab_size=len(tokenizer))
        network = transformers.AutoModelForSeq2SeqLM.from_config(config)
    except Exception as error:  # each type refuses in its own way
        raise RecipeError(
            f"transformers refuses model.arguments={model.arguments} for {model.name}: {type(error).__name__}: {error}"
        ) from error
    network.generation_config = transformers.GenerationConfig(**ids, forced_eos_token_id=end, suppress_tokens=[pad])
    return network


def load_tokenizer(folder: Path, refusal: Refusal) -> Any:
    """The tokenizer in a folder that ``save_pretrained`` wrote. Nothing is downloaded."""
    if not folder.is_dir():
        raise refusal("there is no such folder: give one that save_pretrained of transformers wrote")
    tokenizer = _read(transformers.AutoTokenizer, folder, refusal)
    if tokenizer.pad_token_id is None:
        raise refusal("its tokenizer has no pad_token, which batches need: set one and save it again")
    return tokenizer


def load_network(folder: Path, tokenizer: Any, refusal: Refusal, model: TranslationModel | None = None) -> Any:
    """The sequence-to-sequence network in a folder that ``save_pretrained`` wrote, in evaluation mode.

    Args:
        folder: Where it is.
        tokenizer: Its tokenizer, from the same folder.
        refusal: Makes the error to raise if it cannot be used.
        model: The recipe's model section, if it is to be trained: the required type, and changes to its configuration.

    """
    config = _read(transformers.AutoConfig, folder, refusal)
    if type(config) not in transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        raise refusal(f"its model_type {config.model_type} is not sequence to sequence: give one such as marian or t5")
    if model is not None:
        if PREFIX + config.model_type != model.name:
            raise refusal(f"it is not a {model.name}: use model.name={PREFIX}{config.model_type}")
        _check_arguments(model, config)
        config.update(model.arguments)
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= config.vocab_size:
        raise refusal(
            f"its tokenizer has ids up to {highest}, but its weights have {config.vocab_size} embeddings: give a folder whose "
            f"tokenizer belongs to the weights, or call resize_token_embeddings({highest + 1}) and save them again"
        )
    network, loading = _read(
        transformers.AutoModelForSeq2SeqLM, folder, refusal, config=config, output_loading_info=True
    )
    if loading["missing_keys"]:
        raise refusal(f"its weights lack {', '.join(sorted(loading['missing_keys'])[:3])}: save them again")
    _check_languages(tokenizer, network.generation_config, refusal)
    return network.eval()


def _check_languages(tokenizer: Any, search: Any, refusal: Refusal) -> None:
    """A multilingual network, such as mBART's, translates into any language unless its search begins with one."""
    if not hasattr(tokenizer, "tgt_lang"):
        return
    target = tokenizer.tgt_lang
    code = None if target is None else getattr(tokenizer, "get_lang_id", tokenizer.convert_tokens_to_ids)(target)
    if code is None or code not in (search.forced_bos_token_id, search.decoder_start_token_id):
        raise refusal(
            f"its tokenizer has src_lang={tokenizer.src_lang} and tgt_lang={target}, and the search does not begin with the id of "
            f"the latter: set these two, and generation_config.forced_bos_token_id to that id, and save both again"
        )


def language_doubts(tokenizer: Any, data: TranslationData) -> list[str]:
    """A sentence if a multilingual tokenizer seems to mark sentences with other languages than those of the data."""
    if not hasattr(tokenizer, "tgt_lang"):
        return []
    marks = (tokenizer.src_lang, tokenizer.tgt_lang)
    if all(
        str(mark).lower()[:2] == name.lower()[:2] for mark, name in zip(marks, (data.source, data.target), strict=True)
    ):
        return []
    return [
        f"the tokenizer of model.weights marks sentences as {marks[0]} and translations as {marks[1]}: make sure that these are "
        f"data.source={data.source} and data.target={data.target}"
    ]


def positions(config: Any) -> int | None:
    """The maximum number of subwords in a sentence; ``None`` if there is no limit."""
    names = ("max_position_embeddings", "max_encoder_position_embeddings", "max_decoder_position_embeddings")
    return min((getattr(config, name) for name in names if hasattr(config, name)), default=None)


def _check_arguments(model: TranslationModel, config: Any) -> None:
    known = {*config.to_dict(), *config.attribute_map} - {"model_type", "transformers_version"}
    for key in model.arguments:
        if key not in known:
            raise RecipeError(
                f"unknown key model.arguments.{key}: the configuration of {model.name} has {', '.join(sorted(known))}"
            )


def _refusal(model: TranslationModel) -> Refusal:
    return lambda reason: RecipeError(f"model.weights={model.weights}: {reason}")


def _read(kind: Any, folder: Path, refusal: Refusal, **options: Any) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # of many types
        raise refusal(f"{kind.__name__} cannot read it ({' '.join(str(error).split())}): save it again") from error
