"""The checkpoint of documents: a unit is judged in the pass that copies it, so that what is judged is what is copied.

Only a merge is judged by a read of its own: what it writes over counts already. Decision: docs/decisions/0014.
"""

from __future__ import annotations

from tiering.model import Transition
from tiering.ops import document_export, document_handover, documents
from tiering.ops.checkpoints import CheckpointReport
from tiering.ops.document_judge import Judge
from tiering.ops.work import Work


def run(work: Work, row_count_before: int | None) -> CheckpointReport:
    """Judge the documents of the move's source, and copy them on the way where nobody reads the copy yet."""
    judge = Judge(work, row_count_before)
    if work.record.transition is Transition.HOT_TO_WARM:
        document_handover.copy_judged(work, judge)
    elif work.record.transition is Transition.WARM_TO_COLD:
        document_export.copy_judged(work, judge)
    else:
        for place in documents.sources(work):
            for _ in judge.passing(place.read(work.unit)):
                pass
    return judge.report()
