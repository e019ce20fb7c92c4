"""The VP-DARTS search: `python -m vpdarts_fast.search --help`."""

from vpdarts_fast.search.config import PRESETS, SearchConfig
from vpdarts_fast.search.driver import Search
from vpdarts_fast.search.observer import Interrupted
from vpdarts_fast.search.run_folder import RunFolder

__all__ = ["PRESETS", "Interrupted", "RunFolder", "Search", "SearchConfig"]
