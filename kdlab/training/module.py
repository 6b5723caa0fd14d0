"""One optimizer step of a student, as Lightning wants it; no maths."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from kdlab.errors import UserError
from kdlab.models.transformer import Transformer
from kdlab.objectives import diagnostics
from kdlab.objectives.hidden import projections, reduce_hidden
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import Objective, WeightedTerm
from kdlab.objectives.reduce import Reduced, reduce
from kdlab.strategies import ranks
from kdlab.strategies.single import Single
from kdlab.strategies.strategy import Strategy
from kdlab.teachers.cached import CachedTeacher
from kdlab.teachers.frozen import FrozenTeacher
from kdlab.training.optim import Optim
from kdlab.types import Batch, Side, Split

ALONE = Single()


class StudentModule(lightning.LightningModule):
    """Runs student and teacher, hands both to the objective, steps.

    A Lightning batch is one optimizer step: a list of microbatches, this rank's share. The units of every term are
    counted over all of them on all ranks before the first forward, so that cutting a step differently changes nothing.
    Manual optimisation, therefore the module clips.
    """

    def __init__(
        self,
        student: Transformer,
        objective: Objective,
        teacher: FrozenTeacher | CachedTeacher | None,
        optim: Optim,
        *,
        max_steps: int,
        chunk_size: int,
        strategy: Strategy = ALONE,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.student = student
        self.objective = objective
        self._teacher = teacher  # a plain object: never a submodule (see FrozenTeacher)
        self.projections = nn.ModuleDict()  # of hidden terms: trained and saved with the student, no part of it
        if teacher is not None and objective.hidden_terms:
            ours, theirs = student.config, teacher.num_layers
            layers = {
                "encoder": (ours.num_encoder_layers, theirs["encoder"]),
                "decoder": (ours.num_decoder_layers, theirs["decoder"]),
            }
            self.projections = projections(objective.hidden_terms, ours.d_model, teacher.d_model, layers)
        self._optim = optim
        self._max_steps = max_steps
        self._chunk_size = chunk_size
        self._strategy = strategy

    def configure_model(self) -> None:
        """Puts student, projections and teacher where the strategy wants them."""
        device = self.trainer.strategy.root_device
        self._strategy.distribute(self.student, self.projections, device)
        if isinstance(self._teacher, FrozenTeacher):
            self._teacher.place(self._strategy.teacher, device)

    def configure_optimizers(self) -> Any:
        """Adam over the student's parameters (and projections), and its schedule."""
        optimizer = self._optim.optimizer(self.parameters(), self._strategy)
        return {"optimizer": optimizer, "lr_scheduler": self._optim.scheduler(optimizer, self._max_steps)}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves every microbatch; the position of the stream travels along untouched."""
        position, microbatches = batch
        return position, [microbatch.to(device) for microbatch in microbatches]

    def training_step(self, batch: tuple[Any, list[Batch]], batch_idx: int) -> dict[str, Any]:
        """One update. Returns what the log shows: mean of each term, loss, gradient norm (before clipping)."""
        _, step = batch
        units = ranks.summed(self.objective.units(step))
        scales = self.objective.scales(units)
        sums = {name: torch.zeros((), device=self.device) for name in units}
        loss = torch.zeros((), device=self.device)
        for number, microbatch in enumerate(step, start=1):
            reduced = self._forward(microbatch, scales, self.objective.active)
            with self._strategy.backward(self, last=number == len(step)):
                self.manual_backward(reduced.loss)
            loss += reduced.loss.detach()
            for name, value in reduced.sums.items():
                sums[name] += value
        grad_norm = self._optim.clip(self.parameters())
        shown = self._means(loss, sums, step)
        if not torch.isfinite(shown["loss"] + grad_norm):
            raise UserError(
                f"the loss ({float(shown['loss']):g}) or its gradient ({float(grad_norm):g}) is not finite at step "
                f"{self.trainer.global_step + 1}; a step with it would destroy the weights, so nothing was changed and "
                "the last checkpoint is kept; lower optim.lr, lengthen optim.warmup_steps or use trainer.precision=fp32"
            )
        optimizer: Any = self.optimizers()
        optimizer.step()
        optimizer.zero_grad()
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        return {**shown, "grad_norm": grad_norm}

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Mean of each term over a whole set of gold targets, of which every rank has its share: sums first, one
        division at the end.

        `nll` is always among them, without label smoothing, so that runs with different objectives can be compared; a
        term of that name that is another (smoothed, tempered) is logged as `own_nll`.
        Beside them: each term times its weight, what a teacher adds (diagnostics.py), and of the first microbatch the
        norm of each weighted term's gradient and the cosine between those of every two terms.
        """
        self.student.eval()
        own = {n: t for n, t in self.objective.active.items() if t.on != "pseudo"}
        if "nll" in own and own["nll"].term != Nll():
            own["own_nll"] = own.pop("nll")
        terms = {**own, "nll": WeightedTerm(1.0, "gold", "tgt_token", Nll())}
        if self._teacher is not None and self.objective.needs_teacher:
            terms |= diagnostics.beside_a_teacher()
        sums = dict.fromkeys(terms, 0.0)
        units = dict.fromkeys(terms, 0)
        gradients: dict[str, float] = {}
        with self.trainer.precision_plugin.forward_context():
            for batch in batches:
                microbatch = batch.to(self.device)
                if not gradients:
                    gradients = self._gradients(microbatch, own)
                for name, value in self._forward(microbatch, dict.fromkeys(terms, 1.0), terms, "valid").sums.items():
                    sums[name] += float(value)
                    units[name] += microbatch.num_units(terms[name].on, terms[name].per)
        self.student.train()
        sums, units = ranks.summed(sums), ranks.summed(units)
        means = {name: sums[name] / units[name] for name in terms}
        weighted = {f"weighted/{name}": self.objective.weight(own[name]) * means[name] for name in own}
        return ranks.from_first({**means, **weighted, **gradients})

    @torch.enable_grad()
    def _gradients(self, batch: Batch, terms: dict[str, WeightedTerm]) -> dict[str, float]:
        """How the terms pull at the student: gradient norms, and whether two of them pull the same way."""
        parameters = list(self.student.parameters())
        found = {}
        for name, term in terms.items():
            scale = self.objective.weight(term) / max(1, batch.num_units(self.objective.divides(term), term.per))
            loss = self._forward(batch, {name: scale}, {name: term}, "valid").loss
            found[name] = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        norms = {f"grad_norm/{name}": diagnostics.norm(gradient) for name, gradient in found.items()}
        pairs = combinations(found, 2)
        return norms | {f"grad_cosine/{a}/{b}": diagnostics.cosine(found[a], found[b]) for a, b in pairs}

    def _forward(
        self, batch: Batch, scales: dict[str, float], terms: dict[str, WeightedTerm], split: Split = "train"
    ) -> Reduced:
        targets, padded = batch.targets, self.objective.counts_padding
        mask_RT = None if padded else targets.mask_RT
        out = self.student(batch.src_BS, batch.src_mask_BS, targets.tgt_in_RT, targets.source_R, mask_RT)
        student = Side(out.decoder_ND, self.student.head())
        hidden = {name: terms[name] for name in terms if name in self.objective.hidden_terms}
        tokens = {name: terms[name] for name in terms if name not in hidden}
        settings: dict[str, Any] = {"chunk_size": self._chunk_size, "padded": padded}
        if self._teacher is None or not any(t.term.needs_teacher for t in terms.values()):
            return reduce(tokens, scales, targets, student, None, **settings)
        with self._teacher.guide(batch, split=split, padded=padded) as (guide, seen):
            reduced = reduce(tokens, scales, targets, student, guide, **settings)
            if not hidden:
                return reduced
            more = reduce_hidden(hidden, scales, batch, out, seen, self.projections)
        return Reduced(reduced.loss + more.loss, {**reduced.sums, **more.sums})

    def _means(self, loss: Tensor, sums: dict[str, Tensor], step: list[Batch]) -> dict[str, Any]:
        """The loss of the whole step and the mean of each term over its own rows, on all ranks."""
        terms = {name: self.objective.terms[name] for name in sums}
        units = {f"units/{n}": sum(b.num_units(t.on, t.per) for b in step) for n, t in terms.items()}
        found = ranks.summed({"loss": loss, **sums, **units})
        means = {name: found[name] / found[f"units/{name}"] for name in sums if found[f"units/{name}"]}
        return {"loss": found["loss"], **means}

    def whole(self) -> StudentModule:
        """This module with all weights on every rank, for validation; itself where it is so. Made by all together."""
        student = self._strategy.whole(self.student)
        if student is self.student:
            return self
        settings: dict[str, Any] = {"max_steps": self._max_steps, "chunk_size": self._chunk_size}
        with torch.random.fork_rng(devices=[]):  # the random start of projections, which is thrown away
            plain = StudentModule(student, self.objective, self._teacher, self._optim, **settings)
        maps = {name: ranks.full(value.detach()) for name, value in self.projections.named_parameters()}
        plain.projections.load_state_dict(maps)
        plain.trainer = self.trainer
        return plain.to(self.device)
