"""How many parts a batch is split into: as set, or twice as many whenever memory runs out (`accumulate: auto`).

The numbers are recorded with the steps from which they hold, so that a resumed run splits each step as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from dcclip_cli.data.samplers import MixedBatchSampler
from dcclip_cli.errors import AgainError, Message
from dcclip_cli.progress import Progress
from dcclip_cli.train.compute import decided, redecide
from dcclip_cli.train.distributed import process_count

_NAME = "accumulate"  # in the file of what auto decided


class Parts:
    """The number of parts of each step's batch."""

    def __init__(
        self, asked: int | Literal["auto"], sampler: MixedBatchSampler, folder: Path, progress: Progress
    ) -> None:
        """`folder` is that of the stage. Of several processes, all construct it."""
        self._sampler, self._folder, self._progress = sampler, folder, progress
        self._auto = asked == "auto"
        # From which step on, and how many.
        self._numbers: list[list[int]] = decided(folder, _NAME, lambda: [[0, 1]]) if asked == "auto" else [[0, asked]]
        sampler.check_shares(process_count() * self._numbers[-1][1])  # there were other processes before

    def at(self, step: int) -> int:
        """The number of parts of the step after `step` steps."""
        return next(parts for begin, parts in reversed(self._numbers) if begin <= step)

    @contextmanager
    def that_fit(self, step: int) -> Iterator[int]:
        """The number of parts for the block, which ends quietly where memory runs out and there can be more parts."""
        try:
            yield self.at(step)
        except (RuntimeError, MemoryError) as error:
            if not self._auto or not _out_of_memory(error) or self._more(step) is None:
                raise

    def split(self, step: int) -> None:
        """Split the batches from this step on into more parts.

        Of several processes one cannot tell the others, which wait for it: it raises AgainError, and all read the new
        number when they are started again.
        """
        parts = self._more(step)
        assert parts is not None
        self._numbers.append([step, parts])
        redecide(self._folder, _NAME, self._numbers)
        line = Message(
            "{}: not enough memory for step {}: batches are split into {} parts now", self._folder.name, step + 1, parts
        )
        if process_count() > 1:
            raise AgainError(line, "run the same command again to resume from the last saved state")
        self._progress.say(line)

    def _more(self, step: int) -> int | None:
        """The fewest equal parts that are at least twice as many as now; None where the batch is too small."""
        processes, sizes = process_count(), [sampler.batch_size for sampler in self._sampler.samplers]
        several = range(2 * self.at(step), min(sizes) // processes + 1)
        return next((parts for parts in several if all(size % (parts * processes) == 0 for size in sizes)), None)


def _out_of_memory(error: RuntimeError | MemoryError) -> bool:
    # oneDNN has one sentence for all that it cannot do.
    return (
        isinstance(error, MemoryError)
        or should_reduce_batch_size(error)
        or "could not create a primitive" in str(error)
    )


def free_memory() -> None:
    """Free what a failed pass left behind."""
    clear_device_cache(garbage_collection=True)
