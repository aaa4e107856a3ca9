"""What must be known of windows before they are trained on, without reading a store's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tinyqa_ray.core import stage_folder, storage
from tinyqa_ray.distill.batches import WindowData
from tinyqa_ray.distill.windows_here import window_table
from tinyqa_ray.teacher_logits.window_dataset import MADE_BY, window_files, window_sizes, window_teachers


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowFacts:
    """How many windows there are, and what they carry."""

    windows: int
    longest: int
    """Most tokens of a window; of a store's, the most that it may have."""
    teachers: int
    """Teachers whose logits are kept apart, or 1 if there is their mean; 0 without logits."""
    has_labels: bool


def window_facts(folder: str) -> WindowFacts:
    """Facts about the windows of a finished teacher-logits stage.

    They are read off the files of a local folder, and off the stage's document where it lies in a store,
    whose files are many and far away; a few of them are read where no window holds an answer.

    Raises:
        InputError: no such stage, or files that are not Arrow.
    """
    if storage.is_local(folder):
        data = WindowData(window_files(folder), pad_id=0)
        return WindowFacts(
            windows=len(data),
            longest=data.longest,
            teachers=len(data.logits),
            has_labels=data.has_labels,
        )
    document = stage_folder.require_finished(folder, MADE_BY)
    report, teachers = document["report"], len(window_teachers(folder))
    apart = document["config"].get("combine") == "apart"
    return WindowFacts(
        windows=report["windows"],
        longest=window_sizes(folder).max_seq_len,
        teachers=teachers if apart else min(1, teachers),
        has_labels=_has_labels(folder, report),
    )


def _has_labels(folder: str, report: dict[str, Any]) -> bool:
    if report["answerable_windows"] or not report["questions"]:  # plain text has no questions
        return bool(report["answerable_windows"])
    # Either all are labelled as unanswerable, or none has a label; the first file tells, nearly always.
    positions = (window_table(file)["start_position"].to_numpy() for file in window_files(folder))
    return any((each >= 0).any() for each in positions)
