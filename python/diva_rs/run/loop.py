"""The loop of `post_train`: batches in, steps, logs and checkpoints out."""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from tqdm.auto import tqdm

from diva_rs.distributed import alone
from diva_rs.errors import DataError
from diva_rs.run.callbacks import Callback, JsonLines
from diva_rs.run.evaluation import Evaluation
from diva_rs.run.evaluator import Evaluator
from diva_rs.run.folder import RunFolder
from diva_rs.run.loader import Progress, ResumableLoader, death_of_worker
from diva_rs.run.non_finite import READ_EVERY, NonFiniteMonitor
from diva_rs.run.provenance import describe_data, describe_models, environment, trained_denoiser
from diva_rs.run.ranks.trainer import RankedTrainer, Round
from diva_rs.run.result import PostTrainResult
from diva_rs.run.resume import open_run, progress_of
from diva_rs.step.interrupts import held_interrupts

_log = logging.getLogger("diva_rs")


class Run:
    """One run of the loop, from its start or from the checkpoint in its folder.

    ``progress`` is where it stands after its last whole step.
    """

    def __init__(
        self,
        ranked: RankedTrainer,
        loader: Iterable[Any],
        folder: RunFolder | None,
        callbacks: list[Callback],
        resume: bool | str,
        evaluation: Evaluation,
        one_pass: bool,
    ) -> None:
        self.ranked, self.ranks, self.trainer = ranked, ranked.ranks, ranked.trainer
        self.recipe, self.folder = self.trainer.recipe, folder  # rank 0 has the folder
        self.one_pass = one_pass
        self.callbacks = callbacks if self.ranks.first else []
        self.loader = ResumableLoader(loader, self.recipe.seed, strict=resume != "force")
        self.history: list[dict[str, float]] = []
        self.progress = Progress()
        self.monitor = NonFiniteMonitor(self.recipe.max_skipped)
        self._stages = self.recipe.plan(self.recipe.steps)
        self._started = time.perf_counter()  # moved back by the seconds of earlier starts
        self._warned = False  # of a step larger than the recipe's batch
        self._saved: int | None = None  # step of the newest checkpoint
        if folder is not None:
            self._restore(folder, open_run(folder, self.ranked, self.loader, resume, one_pass))
            # Before the caller's callbacks, so that one that fails loses no row.
            self.callbacks.insert(0, JsonLines(folder.metrics))
        self._evaluates = bool(evaluation.evaluate)
        own = evaluation if self.ranks.first else Evaluation()  # the other ranks wait
        self.evaluator = Evaluator(own, self.trainer, None if folder is None else folder.path)
        ranked.share_state()
        state = (self.progress, self.history, self.monitor.skipped)
        self.progress, self.history, self.monitor.skipped = self.ranks.facts(state)[0]
        self._read = self.progress  # with the batches that were read since the last step
        # Of the last log: time, samples, seconds of waiting.
        self._last_log = (time.perf_counter(), self.progress.samples, 0.0)

    def train(self, show_progress: bool) -> PostTrainResult:
        """Train until the steps, or one pass, are done; see `post_train`."""
        interrupted, evaluator = False, self.evaluator
        evaluator.begin()
        self._call("on_train_begin", self.trainer)
        hidden = not (show_progress and self.ranks.first)
        total, done = self.recipe.steps, self.progress.steps
        with tqdm(total=total, initial=done, desc="post-train", unit="step", disable=hidden) as self._bar:
            try:
                try:
                    self._loop()
                    step = self.progress.steps
                    if evaluator.rows and evaluator.rows[-1]["step"] != step:
                        self._write_log(evaluator.measure(step))  # the end of a pass of unknown length
                except KeyboardInterrupt:
                    interrupted = True
                if (self.history[-1]["step"] if self.history else 0) != self.progress.steps:
                    self._write_log()
                self.monitor.check()
            except BaseException as error:
                self._save_after(error)
                raise
        self.trainer.discard()  # the caller's model keeps no gradient of the last step
        self._save()
        if self._is_stopped():
            evaluator.restore()
            self.ranked.share_state()
        return self._finish(interrupted)

    def _loop(self) -> None:
        """Read, train and log until the steps, or one pass, are done, or the guard ends the run."""
        while not self._is_done():
            epoch = self._read.epoch
            if epoch != self.trainer.epoch:
                self.trainer.set_epoch(epoch)
            for given in self.ranked.rounds(self.loader, epoch, self._read.places, self._read.prints):
                if self._advance(given) and self._is_done():
                    return
            if not self._read.places:
                where = f"in pass {epoch + 1}, after {self.progress.steps} steps"
                why = "it is empty, or can be iterated only once: give a DataLoader or a list, or fewer steps"
                raise DataError(f"the loader gave no batch {where}: {why}")
            if self.one_pass:
                self._end_pass()
                return
            self._read = replace(self._read, epoch=epoch + 1, places=(), prints=(), seen=0)

    def _advance(self, given: Round) -> bool:
        """Train on a round of batches; returns whether that completed a step."""
        read, new = self._read, given.samples
        seen, samples = read.seen + new, read.samples + new
        self._read = replace(read, places=given.places, prints=given.prints, seen=seen, samples=samples)
        complete = self._pending >= (self.recipe.batch or 1)
        seen = self.trainer.samples_seen
        with held_interrupts():  # a Ctrl-C that waits for the update comes when the step is noted
            loss = self.ranked.train(given, self._pending, complete)
            if given.batch is not None and loss is not None:
                self.monitor.batch(given.batch, seen, loss)
            if complete:
                self._note_step()
        if complete:
            self._after_step()
        return complete

    def _end_pass(self) -> None:
        """Make a step of the last batches of a pass, which are fewer than the recipe's batch."""
        if self._pending:
            with held_interrupts():
                self.ranked.update(self._pending)
                self._note_step()
            self._after_step()

    @property
    def _pending(self) -> int:
        """Samples of all ranks that were read since the last step."""
        return self._read.samples - self.progress.samples

    def _note_step(self) -> None:
        if self.recipe.batch is not None and self._pending > self.recipe.batch and not self._warned:
            self._warned = True
            text = "a step takes %d samples, not batch=%d: the loader's batches do not add up to it"
            _log.warning(text, self._pending, self.recipe.batch)
        self.progress = self._read = replace(self._read, steps=self.progress.steps + 1)
        metrics = self.trainer.metrics
        self.monitor.step(self.progress.steps, metrics["loss"], metrics["grad_norm"])

    def _after_step(self) -> None:
        """Callbacks, evaluation, log and checkpoint, where they are due."""
        step, recipe, evaluator = self.progress.steps, self.recipe, self.evaluator
        self._bar.update()
        self._call("on_step", step, self.trainer.metrics)
        scores = evaluator.measure(step) if evaluator.due(step) else {}
        if scores or step % recipe.log_every == 0 or step == recipe.steps:
            self._write_log(scores)
        # At the same steps on every rank, so that all end here.
        if step % min(recipe.log_every, READ_EVERY) == 0:
            self.monitor.read()
            self.monitor.check()
        best = evaluator.best_score(step)
        if best is not None or (recipe.checkpoint_every is not None and step % recipe.checkpoint_every == 0):
            self._save()
        if self.folder is not None and best is not None:
            self.folder.mark_best(step, best)

    def _is_done(self) -> bool:
        last = self.recipe.steps
        return (last is not None and self.progress.steps >= last) or self._is_stopped()

    def _is_stopped(self) -> bool:
        """Whether the guard ends the run, which only rank 0 measures."""
        return self._evaluates and bool(self.ranks.numbers(int(self.evaluator.stopped is not None))[0][0])

    def _call(self, hook: str, *arguments: Any) -> None:
        """Call rank 0's callbacks; the other ranks wait at their next batch."""
        with alone():
            for callback in self.callbacks:
                getattr(callback, hook)(*arguments)

    def _write_log(self, scores: Mapping[str, float] | None = None) -> None:
        """Read the statistics from the device, add a row to the history, and call the callbacks."""
        step = self.progress.steps
        if step == 0:
            return
        self.trainer.step_modules.guard.report()
        self.monitor.read()
        now = time.perf_counter() - self.evaluator.seconds
        then, samples, waited = self._last_log
        elapsed = max(now - then, 1e-9)
        metrics = {name: float(value) for name, value in self.trainer.metrics.items()}
        if len(self._stages) > 1:
            metrics["stage"] = max(i for i, stage in enumerate(self._stages, 1) if stage.first < step)
        metrics["skipped"] = self.monitor.skipped
        metrics["samples_per_second"] = (self.progress.samples - samples) / elapsed
        metrics["waiting"] = (self.loader.waited - waited) / elapsed
        metrics.update(scores or {})
        self._last_log = (now, self.progress.samples, self.loader.waited)
        self.history.append({"step": step, **metrics})
        self._bar.set_postfix(
            loss=f"{metrics['loss']:.4f}", lr=f"{metrics['lr']:.1e}", waiting=f"{metrics['waiting']:.0%}"
        )
        self._call("on_log", step, metrics)

    def _restore(self, folder: RunFolder, state: dict[str, Any] | None) -> None:
        """Continue from a checkpoint's state."""
        if state is None:
            folder.rows(0)
            return
        self.progress = progress_of(state)
        self.trainer.load_state_dict(state)
        self._saved = self.progress.steps
        self.history = folder.rows(self._saved)
        self.monitor.skipped = int(state["run"]["skipped"])
        self._started -= float(state["run"]["seconds"])
        text = "resuming the run in %s at step %d"
        if self.recipe.steps is not None and self._saved >= self.recipe.steps:
            text = "the run in %s has done all its %d steps: it is read back, resume=False would start again"
        _log.warning(text, folder.path, self._saved)

    def _save(self) -> None:
        """Write a checkpoint of the last whole step, unless there is one."""
        step = self.progress.steps
        if self.folder is None or step in (0, self._saved):
            return
        with held_interrupts() as hold:
            hold()
            self._write_checkpoint(self.folder, step)

    def _write_checkpoint(self, folder: RunFolder, step: int) -> None:
        state = self.trainer.state_dict()
        # Batches that were read for the next step are read again after a resume.
        state["counters"].update(epoch=self.progress.epoch, samples_seen=self.progress.seen)
        self.monitor.read()
        run = {"progress": asdict(self.progress), "skipped": self.monitor.skipped}
        run["seconds"] = time.perf_counter() - self._started
        folder.save({**state, "run": run}, step, self.recipe.keep)
        self._saved = step

    def _save_after(self, error: BaseException) -> None:
        """Keep the steps that were done before an error, and name a dead worker of the loader."""
        self.trainer.discard()
        try:
            self._save()
        except DataError as err:
            _log.warning("%s", err)  # the error that ended the run is raised
        death = death_of_worker(error)
        if death is not None:
            raise death from error

    def _finish(self, interrupted: bool) -> PostTrainResult:
        """Make the result, and write it where there is a folder."""
        trainer, steps = self.trainer, self.progress.steps
        # Scores and history of rank 0 are every rank's, so that a script continues alike on all.
        own = (self.history, self.evaluator.report(), self.evaluator.results)
        self.history, found, results = self.ranks.facts(own)[0]
        report = {
            **describe_models(trainer),
            "steps": steps,
            "samples": self.progress.samples,
            "seconds": round(time.perf_counter() - self._started, 3),
            "skipped": self.monitor.skipped,
            "interrupted": interrupted,
            "data": describe_data(self.loader.loader),
            "ranks": self.ranks.world,
            **environment(trainer.step_modules.device),
            **found,
        }
        models = (trainer.projector, self.recipe, trainer.clip, trained_denoiser(trainer))
        low_rank = trainer.step_modules.low_rank
        result = PostTrainResult(self.history, report, *models, low_rank, evaluations=results)
        if self.folder is not None:
            result.save(self.folder.path)
        _log.info("the run read %s", report["data"])
        if self.ranks.first and result.stopped is not None:
            _log.warning("the guard ended the run after %d steps: %s", steps, result.stopped)
        if self.ranks.first and interrupted:
            kept = "" if self.folder is None else f"; checkpoint in {self.folder.checkpoints}"
            _log.warning("interrupted after %d steps%s", steps, kept)
        self._call("on_train_end", result)
        return result
