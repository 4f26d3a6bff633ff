"""One error for "out of memory", whether Python or PyTorch raises it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager


class TooLittleMemoryError(MemoryError):
    """Something needs more memory than there is; the message says what."""


@contextmanager
def memory_errors(what: str = "the photo") -> Iterator[None]:
    """Turn a lack of memory into one kind of error with a message. PyTorch raises RuntimeError for it.

    Raises:
        TooLittleMemoryError: `what` needs more memory than there is.
    """
    try:
        yield
    except TooLittleMemoryError:
        raise
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or _lacks_memory(str(error))):
            raise
        raise TooLittleMemoryError(f"{what} needs more memory than there is") from error


def _lacks_memory(message: str) -> bool:
    """Whether a message is one of PyTorch's, for a GPU, for a CPU under Windows, and for a CPU elsewhere."""
    return re.search("out of memory|not enough memory|can't allocate memory", message) is not None
