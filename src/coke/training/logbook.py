"""Where figures go: metrics.jsonl always, TensorBoard by default, a bar on a terminal or plain lines in a pipe."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console

from coke import distributed
from coke.progress import changeable_bar, say
from coke.run import Run


class Logbook:
    """Writes records of a run; silent on every process but the first.

    Args:
        run: whose metrics.jsonl and tensorboard/ are written; None keeps no record (a dry run).
        console: where people read; None says nothing.
        steps_done: of a run that goes on: what TensorBoard has of later steps is hidden.
    """

    def __init__(
        self, run: Run | None, console: Console | None, *, tensorboard: bool, steps_done: int | None = None
    ) -> None:
        first = distributed.rank() == 0
        self.run = run if first else None
        self.console = console if first else None
        self._stream = None
        self._board: Any = None
        if self.run is not None:
            self.run.path.mkdir(parents=True, exist_ok=True)
            self._stream = open(self.run.metrics_file, "a", encoding="utf-8")  # noqa: SIM115 closed in close()
            if tensorboard:
                from torch.utils.tensorboard.writer import SummaryWriter

                purged = None if steps_done is None else steps_done + 1
                self._board = SummaryWriter(str(self.run.tensorboard), purge_step=purged)

    def reopen(self) -> None:
        """Go on at the end of metrics.jsonl, after somebody rewrote it."""
        if self._stream is not None and self.run is not None:
            self._stream.close()
            self._stream = open(self.run.metrics_file, "a", encoding="utf-8")  # noqa: SIM115

    def flush(self) -> None:
        """Hand TensorBoard's events to its file."""
        if self._board is not None:
            self._board.flush()

    def say(self, text: str) -> None:
        """One line for people."""
        if self.console is not None:
            try:
                say(self.console, text)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                self.console = None  # a terminal that was closed: SIGHUP says what follows

    def write(self, record: dict[str, Any], *, step: int) -> None:
        """One record, in its file before the next step begins; ``step`` counts those done from the run's start."""
        if self._stream is not None:
            try:
                self._stream.write(json.dumps(record) + "\n")
                self._stream.flush()
            except OSError as error:  # a full disk
                stream, self._stream = self._stream, None
                with suppress(OSError):  # to close it tries again
                    stream.close()
                raise OSError(error.errno, error.strerror, stream.name) from error
        if self._board is not None:
            for name, value in _scalars(record):
                self._board.add_scalar(name, value, step)

    def event(self, text: str, *, epoch: int = 0, step: int = 0) -> None:
        """Something that happened before a step of an epoch, for people and the record."""
        self.say(text)
        self.write({"kind": "event", "epoch": epoch, "step": step, "text": text}, step=0)

    @contextmanager
    def epoch_bar(self, epoch: int, n_epochs: int, n_steps: int, first_step: int) -> Iterator[Any]:
        """A bar over an epoch's steps: call what it gives after each step with the loss."""
        name = f"epoch {epoch}/{n_epochs - 1}"
        with changeable_bar(self.console, name, completed=first_step, total=n_steps) as update:
            yield lambda loss: update(advance=1, said="" if loss is None else f"loss {loss:.3f}")

    def epoch_line(self, record: dict[str, Any], n_epochs: int) -> None:
        """An epoch in one line."""
        loss = (
            "clustering"
            if record["loss"] is None
            else f"loss {record['loss']:.3f} (ln K {record['ln_clusters']:.2f})"
        )
        heads = record["heads"]
        sizes = ", ".join(f"{h['smallest']}-{h['largest']}/{h['bound']:.0f}" for h in heads)
        churn = "" if record["churn"] is None else f"  labels changed {100 * record['churn']:.0f} %"
        self.say(
            f"epoch {record['epoch']}/{n_epochs - 1}  {loss}{churn}  sizes/bound {sizes}  "
            f"rank {record['effective_rank']:.0f}  {record['seconds']:.1f} s  {record['verdict']['state']}"
        )

    def close(self) -> None:
        """Finish the files."""
        if self._stream is not None:
            self._stream.close()
        if self._board is not None:
            self._board.close()


def _scalars(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    kind = record["kind"]
    for name, value in record.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in ("epoch", "step"):
            yield f"{kind}/{name}", float(value)
    for index, head in enumerate(record.get("heads", [])):
        for name in ("used", "smallest", "largest", "largest_share"):
            yield f"head {index}/{name}", float(head[name])
