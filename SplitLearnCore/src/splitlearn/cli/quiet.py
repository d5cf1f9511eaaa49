"""What the commands print beside their own words."""

import logging

from transformers.utils import logging as transformers_logging

from splitlearn.errors import OptionError

LEVELS = ("debug", "info", "warning", "error")


def set_up_logging(level: str = "info") -> None:
    """Log our own messages to standard error and keep transformers' progress bars and notes away.

    Raises:
        OptionError: no such level.
    """
    if level.lower() not in LEVELS:
        raise OptionError(f"--log-level takes {', '.join(LEVELS)}; got {level!r}")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.basicConfig(level=level.upper(), format="%(levelname).1s %(asctime)s %(name)s: %(message)s", datefmt="%T")
    for library in ("httpx", "httpcore", "urllib3", "filelock"):
        logging.getLogger(library).setLevel(logging.WARNING)
