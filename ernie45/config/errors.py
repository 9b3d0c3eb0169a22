"""The exceptions a user can meet.

They know nothing about where they are raised. A message has the field, its value, the rule and a way out::

    Ernie45Error
    ├── ConfigError (ValueError)       an option, config key or preset is wrong
    ├── CheckpointError (ValueError)   a model folder is missing, damaged, of another architecture
    ├── MediaError (ValueError)        an image or a video cannot be used
    │   ├── MediaFormatError           it is none of the kinds of file that are read
    │   ├── MediaSizeError             it is over a limit of bytes, pixels, frames or decoding time
    │   ├── MediaAccessError           it lies where users may not make this machine read
    │   ├── MediaTimeoutError          its host was too slow
    │   └── MediaUnknownError          it was named by an id that is not, or no longer, remembered
    ├── RequestError (ValueError)      a prompt, a message or a sampling parameter is wrong
    ├── DataError (ValueError)         a training or evaluation record is wrong
    └── StorageError (OSError)         the disk is full or a file cannot be written

The command line prints any of them as one line and exits with code 2.
"""


class Ernie45Error(Exception):
    """Base of every error that is the user's to mend."""


class ConfigError(Ernie45Error, ValueError):
    """An option, a config key or a preset is wrong."""


class CheckpointError(Ernie45Error, ValueError):
    """A model folder is missing, damaged or of another architecture."""


class MediaError(Ernie45Error, ValueError):
    """An image or a video cannot be fetched, decoded or used."""


class MediaFormatError(MediaError):
    """An image or a video is none of the kinds of file that are read."""


class MediaSizeError(MediaError):
    """An image or a video is over a limit of bytes, pixels, frames or decoding time."""


class MediaAccessError(MediaError):
    """An image or a video lies where users may not make this machine read."""


class MediaTimeoutError(MediaError):
    """The host of an image or a video was too slow."""


class MediaUnknownError(MediaError):
    """A picture was named by an id that is not, or no longer, remembered."""


class RequestError(Ernie45Error, ValueError):
    """A prompt, a message or a sampling parameter is wrong."""


class DataError(Ernie45Error, ValueError):
    """A training or evaluation record is wrong."""


class StorageError(Ernie45Error, OSError):
    """A file cannot be written: disk full, no permission, read-only."""
