"""What the command line reports as one paragraph: mistakes in what it was given, each with the way out."""

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
    """Something that the user gave is wrong; the message names it and says what to do."""


class RecipeError(InputError):
    """A recipe or an override that cannot be used."""


class DataNotFoundError(InputError):
    """Data that is not where the recipe says."""


class DiagnosticsError(InputError):
    """Arrays or a network from which a diagnostic cannot be computed."""


class MissingPackageError(InputError):
    """An optional package that is not installed."""


class RunFolderError(InputError):
    """A run folder that cannot be written, or that holds another run."""


class TargetError(InputError):
    """Targets, the loss that they are for, and a kind of smoothing that do not fit one another."""


class TeacherError(InputError):
    """A teacher that is not there, or that cannot teach this student."""


class TextError(InputError):
    """Text that cannot be read, or parallel texts that do not match."""


class RunFolderBusyError(RunFolderError):
    """A run folder whose run another process is doing."""
