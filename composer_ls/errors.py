"""Errors for wrong input. The command line prints each as one paragraph, without a traceback."""

__all__ = [
    "DataNotFoundError",
    "DiagnosticsError",
    "InputError",
    "MissingPackageError",
    "RecipeError",
    "RunFolderBusyError",
    "RunFolderError",
    "TargetError",
    "TeacherError",
    "TextError",
]


class InputError(ValueError):
    """Wrong user input. The message names the input and says how to fix it."""


class RecipeError(InputError):
    """A recipe or an override that cannot be used."""


class DataNotFoundError(InputError):
    """Data that is not where the recipe says it is."""


class DiagnosticsError(InputError):
    """Arrays or a network for which a diagnostic cannot be computed."""


class MissingPackageError(InputError):
    """An optional package that is not installed."""


class RunFolderError(InputError):
    """A run folder that cannot be written, or that holds another run."""


class TargetError(InputError):
    """Targets, a loss and a kind of smoothing that do not fit together."""


class TeacherError(InputError):
    """A teacher that is missing, or that cannot teach this student."""


class TextError(InputError):
    """Text that cannot be read, or parallel texts that do not match."""


class RunFolderBusyError(RunFolderError):
    """A run folder that another process is working on."""
