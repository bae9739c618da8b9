"""Dead letters as work: looked at, grouped, put back, repaired, moved away, removed.

::

    taking ──► letter ──► filters ──► browsing: read, survey, group      (all is handed back)
                                 ├──► replay, editing: putting, then removed
                                 ├──► transfer: lines written, or put from lines
                                 └──► purging: removed
"""

from evworker.broker.deadletters.browsing import (
    LetterGroup,
    Survey,
    browse_dead_letters,
    group_dead_letters,
    read_dead_letters,
    survey_dead_letters,
)
from evworker.broker.deadletters.counting import count_messages
from evworker.broker.deadletters.editing import edit_dead_letter, edited_envelope
from evworker.broker.deadletters.filters import Condition, LetterFilter, parse_moment
from evworker.broker.deadletters.history import Death
from evworker.broker.deadletters.letter import Letter
from evworker.broker.deadletters.purging import purge_dead_letters
from evworker.broker.deadletters.replay import Replay, origin_queue, replay_dead_letters
from evworker.broker.deadletters.transfer import (
    Exported,
    Imported,
    export_dead_letters,
    import_dead_letters,
)

__all__ = [
    "Condition",
    "Death",
    "Exported",
    "Imported",
    "Letter",
    "LetterFilter",
    "LetterGroup",
    "Replay",
    "Survey",
    "browse_dead_letters",
    "count_messages",
    "edit_dead_letter",
    "edited_envelope",
    "export_dead_letters",
    "group_dead_letters",
    "import_dead_letters",
    "origin_queue",
    "parse_moment",
    "purge_dead_letters",
    "read_dead_letters",
    "replay_dead_letters",
    "survey_dead_letters",
]
