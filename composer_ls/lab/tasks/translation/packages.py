"""The packages of the extra ``nlp``, or an error that says how to install them."""

from composer_ls.errors import MissingPackageError

try:
    import sacrebleu
    import tokenizers
    import transformers
except ImportError as error:
    raise MissingPackageError(
        f"translation needs the package {error.name}, which is not installed: pip install 'composer_ls[nlp]'"
    ) from error

__all__ = ["sacrebleu", "tokenizers", "transformers"]
