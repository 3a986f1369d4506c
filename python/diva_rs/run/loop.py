"""The loop of `post_train`: batches in, steps, logs and checkpoints out."""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from diva_rs.distributed import alone
from diva_rs.errors import DataError
from diva_rs.run.callbacks import Callback, JsonLines
from diva_rs.run.evaluate import Evaluation, Watch
from diva_rs.run.feed import Feed, death_of_worker
from diva_rs.run.folder import RunFolder
from diva_rs.run.guards import READ_EVERY, Numbers
from diva_rs.run.provenance import describe_data, environment
from diva_rs.run.ranks.together import Together
from diva_rs.run.result import PostTrainResult
from diva_rs.run.resume import open_run

_log = logging.getLogger("diva_rs")


class Run:
    """One run of the loop, from its start or from the checkpoint in its folder."""

    def __init__(
        self,
        together: Together,
        loader: Iterable[Any],
        folder: RunFolder | None,
        callbacks: list[Callback],
        progress: bool,
        resume: bool | str,
        evaluation: Evaluation | None = None,
    ) -> None:
        self.together, self.ranks, self.trainer = together, together.ranks, together.trainer
        self.recipe, self.folder = self.trainer.recipe, folder  # the folder is rank 0's
        self.callbacks = callbacks if self.ranks.first else []
        self.progress = progress and self.ranks.first
        self.history: list[dict[str, float]] = []
        self.samples, self.seconds = 0, 0.0  # of the whole run, earlier starts included
        self._saved: int | None = None  # step of the newest checkpoint
        self._warned = False
        self.numbers = Numbers(self.recipe.max_skipped)
        place = None
        if folder is not None:
            place = self._restore(open_run(folder, self.trainer, resume))
            # Before the caller's own, so that one that fails loses no row.
            self.callbacks.insert(0, JsonLines(folder.metrics))
        place_of_files = None if folder is None else folder.path
        self.evaluates = evaluation is not None
        # Rank 0 evaluates, while the others wait.
        mine = evaluation is not None and self.ranks.first
        self.watch = Watch(evaluation, self.trainer, place_of_files) if evaluation and mine else None
        self.together.share_state()
        own = [place, self.samples, self.history, self.numbers.skipped]
        place, self.samples, self.history, self.numbers.skipped = self.ranks.facts(own)[0]
        self._read = 0 if place is None else int(place["batches"])  # batches of this pass, of all ranks
        self.feed = Feed(loader, self.recipe.seed, together.own_place(place))
        self._done = self._mark()
        self._started = time.perf_counter()
        # Of the last log: seconds, samples, seconds of waiting.
        self._since = (self._started, self.samples, self.feed.waited)

    def go(self, one_pass: bool) -> PostTrainResult:
        """Train until the steps, or one pass, are done; see `post_train`."""
        interrupted = False
        if self.watch is not None:
            with alone():
                self.watch.begin()
        self._tell(lambda callback: callback.on_train_begin(self.trainer))
        done = self.trainer.steps_done
        with tqdm(
            total=self.recipe.steps, initial=done, desc="post-train", unit="step", disable=not self.progress
        ) as bar:
            try:
                try:
                    for step in () if self._over() else self._steps(one_pass):
                        self._after(step, bar)
                        if self._over():
                            break
                    self._last_look(bar)
                except KeyboardInterrupt:
                    interrupted = True
                last = self.history[-1]["step"] if self.history else 0
                if last != self.trainer.steps_done:
                    self._log(self.trainer.steps_done, bar)
                self.numbers.check()
            except BaseException as error:
                # Whatever went wrong, the steps that were done are not lost.
                self.together.discard()
                try:
                    self._save()
                except DataError as err:
                    _log.warning("%s", err)  # beside the error that ends the run, which is the one to see
                death = death_of_worker(error)
                if death is not None:
                    raise death from error
                raise
        self.together.discard()  # the caller's model keeps no gradient of the last step
        self._save()
        if self._over():
            if self.watch is not None:
                self.watch.restore()
            self.together.share_state()
        result = self._result(interrupted)
        if result.stopped is not None and self.ranks.first:
            _log.warning(
                "the guard ended the run after %d steps: %s", self.trainer.steps_done, result.stopped
            )
        if self.folder is not None:
            result.save(self.folder.path)
        if interrupted and self.ranks.first:
            kept = "" if self.folder is None else f"; checkpoint in {self.folder.checkpoints}"
            _log.warning("interrupted after %d steps%s", self.trainer.steps_done, kept)
        self._tell(lambda callback: callback.on_train_end(result))
        return result

    def _restore(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """Go on from a checkpoint's state; returns the place in the data."""
        assert self.folder is not None
        if state is None:
            self.folder.rows(0)
            return None
        self.trainer.load_state_dict(state)
        self._saved = self.trainer.steps_done
        self.history = self.folder.rows(self._saved)
        run = state.get("run", {})
        self.numbers.skipped = int(run.get("skipped", 0))
        self.samples, self.seconds = int(run.get("samples", 0)), float(run.get("seconds", 0.0))
        if self.recipe.steps is not None and self._saved >= self.recipe.steps:
            text = "the run in %s has done all its %d steps: it is read back, resume=False would start anew"
        else:
            text = "going on with the run in %s at step %d"
        _log.warning(text, self.folder.path, self._saved)
        place: dict[str, Any] | None = run.get("place")
        return place

    def _save(self) -> None:
        """Write a checkpoint of the steps that were done, unless there is one."""
        step = self.trainer.steps_done
        if self.folder is None or step in (0, self._saved):
            return
        state = self.trainer.state_dict()
        state["counters"].update(self._done["counters"])
        self.numbers.read()
        run = {"place": self._done["place"], "samples": self._done["samples"], "seconds": self._seconds()}
        run["skipped"] = self.numbers.skipped
        self.folder.save({**state, "run": run}, step, self.recipe.keep)
        self._saved = step

    def _steps(self, one_pass: bool) -> Iterator[int]:
        """Feed batches until the steps, or one pass, are done; yields the number of each step."""
        trainer, last, enough = self.trainer, self.recipe.steps, self.recipe.batch or 1
        if last is not None and trainer.steps_done >= last:
            return
        for epoch in itertools.count(self.feed.epoch):
            if epoch != trainer.epoch:
                trainer.set_epoch(epoch)
            if epoch != self.feed.epoch:
                self._read = 0
            for read, batch, samples in self.together.rounds(self.feed, epoch):
                self._read = read
                if self._advance(partial(self.together.train, batch, samples, enough), batch):
                    self._check_size(trainer.metrics["samples"])
                    yield trainer.steps_done
                    if last is not None and trainer.steps_done >= last:
                        return
            if self._read == 0:
                if epoch == 0:
                    raise DataError("the loader gave no batch at all")
                raise DataError(
                    f"the loader gave no batch in pass {epoch + 1}, after {trainer.steps_done} of {last} "
                    "steps: it can be iterated only once; give a DataLoader or a list, or fewer steps"
                )
            if one_pass:
                if self.together.pending:  # the last, smaller batch of the pass
                    self._advance(self.together.update)
                    yield trainer.steps_done
                return

    def _advance(self, work: Callable[[], Tensor | None], batch: Any = None) -> bool:
        """Let the trainer work, and say whether that completed a step."""
        trainer = self.trainer
        steps, samples, seen = trainer.steps_done, self.together.samples, trainer.samples_seen
        try:
            loss = work()
            if loss is not None:
                self.numbers.batch(batch, seen, trainer.samples_seen - seen, loss)
        finally:  # a Ctrl-C that waited for the update comes when the step is done
            self.samples += self.together.samples - samples
            if trainer.steps_done > steps:
                metrics = trainer.metrics
                self.numbers.step(trainer.steps_done, metrics["loss"], metrics["grad_norm"])
                self._done = self._mark()
        return trainer.steps_done > steps

    def _mark(self) -> dict[str, Any]:
        """Where a whole step ended; what is read after it for the next one comes again after a resume."""
        counters = {"epoch": self.trainer.epoch, "samples_seen": self.together.seen}
        place = {**self.feed.place(), "batches": self._read}
        return {"place": place, "samples": self.samples, "counters": counters}

    def _after(self, step: int, bar: Any) -> None:
        bar.update()
        self._tell(lambda callback: callback.on_step(step, self.trainer.metrics))
        scores = self._look(step) if self.watch is not None and self.watch.due(step) else None
        if scores or step % self.recipe.log_every == 0 or step == self.recipe.steps:
            self._log(step, bar, scores)
        # At steps that are the same on every rank, so that all end here.
        if step % min(self.recipe.log_every, READ_EVERY) == 0:
            self.numbers.read()
            self.numbers.check()
        self._keep_best(step)
        every = self.recipe.checkpoint_every
        if every is not None and step % every == 0:
            self._save()

    @property
    def _stopped(self) -> str | None:
        """Why the guard ends the run."""
        return None if self.watch is None else self.watch.stopped

    def _over(self) -> bool:
        """Whether the guard ends the run, which rank 0 alone can tell."""
        return self.evaluates and bool(self.ranks.numbers(int(self._stopped is not None))[0][0])

    def _look(self, step: int) -> dict[str, float]:
        assert self.watch is not None
        with alone():
            return self.watch.look(step)

    def _tell(self, hook: Callable[[Callback], Any]) -> None:
        """The callbacks are rank 0's: the others wait for it at their next batch."""
        with alone():
            for callback in self.callbacks:
                hook(callback)

    def _keep_best(self, step: int) -> None:
        """A checkpoint of the step whose score is the best so far, spared when older ones are removed."""
        best = None if self.watch is None else self.watch.best_score(step)
        if self.folder is not None and best is not None:
            self._save()
            self.folder.mark_best(step, best)

    def _last_look(self, bar: Any) -> None:
        """Evaluate at the end of a pass whose length was not known."""
        step = self.trainer.steps_done
        if self.watch is not None and self.watch.rows[-1]["step"] != step:
            self._log(step, bar, self._look(step))

    def _seconds(self) -> float:
        return self.seconds + time.perf_counter() - self._started

    def _check_size(self, samples: int) -> None:
        if self.recipe.batch is not None and samples > self.recipe.batch and not self._warned:
            self._warned = True
            _log.warning(
                "a step takes %d samples, not batch=%d: the loader's batches do not add up to it",
                samples,
                self.recipe.batch,
            )

    def _log(self, step: int, bar: Any, scores: dict[str, float] | None = None) -> None:
        """Read the statistics from the device, once per `log_every` steps and at each evaluation."""
        if step == 0:
            return
        self.trainer.step_modules.guard.report()
        self.numbers.read()
        now = time.perf_counter() - (0.0 if self.watch is None else self.watch.seconds)
        then, samples, waited = self._since
        metrics = {name: float(value) for name, value in self.trainer.metrics.items()}
        metrics["skipped"] = self.numbers.skipped
        metrics["samples_per_second"] = (self.samples - samples) / max(now - then, 1e-9)
        metrics["waiting"] = (self.feed.waited - waited) / max(now - then, 1e-9)
        self._since = (now, self.samples, self.feed.waited)
        metrics.update(scores or {})
        self.history.append({"step": step, **metrics})
        bar.set_postfix(
            loss=f"{metrics['loss']:.4f}", lr=f"{metrics['lr']:.1e}", waiting=f"{metrics['waiting']:.0%}"
        )
        self._tell(lambda callback: callback.on_log(step, metrics))

    def _result(self, interrupted: bool) -> PostTrainResult:
        trainer = self.trainer
        # What rank 0 measured is every rank's result: the script that goes on is the same on all.
        watched = {} if self.watch is None else self.watch.report()
        self.history, watched = self.ranks.facts([self.history, watched] if self.ranks.first else None)[0]
        report = {
            "clip": f"{type(trainer.clip).__name__} ({trainer.step_modules.tower.name})",
            "teacher": trainer.teacher.describe(),
            "steps": trainer.steps_done,
            "samples": self.samples,
            "seconds": round(self._seconds(), 3),
            "skipped": self.numbers.skipped,
            "interrupted": interrupted,
            "data": describe_data(self.feed.loader),
            "trained_parameters": {
                "clip": sum(value.numel() for value in trainer.step_modules.parameters.values()),
                "projector": sum(value.numel() for value in trainer.projector.parameters()),
            },
            "backend": trainer.backend,
            "ranks": self.ranks.world,
            **environment(trainer.step_modules.device),
            **watched,
        }
        return PostTrainResult(self.history, report, trainer.projector, self.recipe, trainer.clip)
