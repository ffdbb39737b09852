"""The LightningModule of all training: steps, logging and weights.

Optimisation is manual. A batch is one step: the list of this rank's packs. Gradients are communicated with the last
pack only, and divided once by the count of supervised tokens over all packs and ranks. Of ranks that compute a model
together on the same rows (tensor parallelism), one counts, scores and reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from auris import config
from auris.config import Config
from auris.data.rows import group, language
from auris.model import adapters, llm
from auris.model.compiled import compile_blocks
from auris.model.generation import GenerationSettings
from auris.model.pack import Pack
from auris.model.weights.loading import InitialWeights
from auris.text import tasks
from auris.text.tokenizer import Tokenizer
from auris.training import cost, optim, references, sharding
from auris.training.faults import RowResult, watch
from auris.training.objectives.dpo import DPO
from auris.training.objectives.objective import Objective
from auris.training.strategy import Sharded
from auris.training.task_score import TaskScore

# Sums of a step that are not metrics of the objective.
_COUNTS = {
    *("loss", "count", "tasks", *cost.LOAD, "idle", "audio_seconds"),
    *("rows_met", "rows_unusable", "lost_workers", "waited", "peak_bytes"),
}


Outputs = dict[str, Any]
"""What a step returns to the callbacks."""


class AudioLMModule(L.LightningModule):
    """Trains an `AudioLM` on an objective.

    Args:
        net: on the meta device; `configure_model` gives it memory and weights.
        objective: loss of a pack, and answers to its prompts.
        tokenizer: decodes answers in validation.
        optim: the optimizer as `_target_` with its arguments, and SCHEDULE_KEYS (Qwen-Audio Table 6).
        max_steps: length of the schedule.
        trainable: parts of the net that learn; all others are frozen.
        lora: settings of `llm.lora`, if `trainable` names it (`adapters.attach`).
        initial: where initial weights come from; later ones replace earlier ones.
        max_new_tokens: of an answer in validation.
        seed: of the initial weights.
        compile: backend of torch.compile for the blocks of encoder and LLM, or None.
        recipe: the resolved config, which every checkpoint contains.
    """

    def __init__(
        self,
        *,
        net: nn.Module,
        objective: Objective,
        tokenizer: Tokenizer,
        optim: Config,
        max_steps: int,
        trainable: Sequence[str],
        lora: Config | None = None,
        initial: Sequence[InitialWeights] = (),
        max_new_tokens: int = 256,
        seed: int = 0,
        compile: str | None = None,
        recipe: Config | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.save_hyperparameters({"recipe": recipe or {}})
        self.net, self.objective, self.tokenizer = net, objective, tokenizer
        self.optim, self.max_steps, self.trainable = dict(optim), max_steps, list(trainable)
        self.lora, self.initial, self.max_new_tokens, self.seed = lora, initial, max_new_tokens, seed
        self.compile_with = compile
        self.scores: dict[str, TaskScore] = {}
        self.meshes: sharding.Meshes | None = None  # set by a strategy that shards

    def configure_model(self) -> None:
        if not self._has_no_memory:
            return  # Lightning calls this more than once
        twin = references.twin(self.objective, self.net)
        adapters.attach(self.net, self.trainable, token_ids=self.tokenizer.audio_ids, lora=self.lora)
        optim.freeze(self.net, self.trainable)
        device = "cpu"
        if self.meshes is not None:
            sharding.shard(self.net, self.meshes)
            device = self.trainer.strategy.root_device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            sharding.materialise(self.net, device, draw=not any(one.is_whole for one in self.initial))
            sharding.materialise(self.objective, "cpu")
        if self.meshes is not None:
            sharding.shard_objective(self.objective, self.meshes)
        for one in self.initial:
            one.load(self.net, seed=self.seed)
        with sharding.Draws():
            adapters.initialise(self.net, seed=self.seed)
        self._provide_reference(twin)  # here, where a resumed run too has its initial weights
        if self.compile_with is not None:
            compile_blocks([*self.net.encoder.blocks, *llm.layers(self.net.llm)], self.compile_with)

    def _provide_reference(self, twin: nn.Module | None) -> None:
        """Give preference training its reference, a live one where there is a twin of the net."""
        meshes = self.meshes
        if twin is not None:
            device = self.trainer.strategy.root_device
            references.start_live(self.objective, self.net, twin, device=device, meshes=meshes)
        elif isinstance(self.objective, DPO):
            references.attach_cached(
                self.net, self.trainer, recipe=self.hparams["recipe"], tensor_parallel=meshes.copies if meshes else 1
            )

    def cpu(self) -> AudioLMModule:
        """Do nothing before the net has memory: Lightning calls this after any error, which another would hide."""
        return self if self._has_no_memory else super().cpu()

    def configure_optimizers(self) -> tuple[list, list]:
        o = self.optim
        groups = optim.parameter_groups(
            self.net,
            self.objective,
            lr=o["lr"],
            weight_decay=o["weight_decay"],
            layer_decay=o["layer_decay"],
            lr_factors=o["lr_factors"],
        )
        own = {key: value for key, value in o.items() if key not in optim.SCHEDULE_KEYS}
        optimizer = config.build({**own, "_partial_": True})(groups)
        schedule = optim.cosine(
            optimizer, warmup_steps=o["warmup_steps"], max_steps=self.max_steps, floor=o["min_lr"] / o["lr"]
        )
        return [optimizer], [schedule]

    def training_step(self, packs: list[Pack], step: int) -> Outputs:
        sums = {name: torch.zeros((), device=self.device) for name in ("loss", "count")}
        for number, pack in enumerate(packs):
            last = number == len(packs) - 1
            with nullcontext() if last else self._without_communication():
                loss, metrics = self.objective(self.net, pack)
                self.manual_backward(loss)
            new = {"loss": loss.detach(), "count": self.objective.count(pack), **metrics, **cost.pack_counts(pack)}
            for name, value in new.items():
                sums[name] = sums.get(name, 0) + value
        counts = {
            "audio_seconds": sum(pack["audio_seconds"] for pack in packs),
            "rows_met": sum(len(pack["rows"]) + len(pack["skipped"]) for pack in packs),
            "rows_unusable": sum(len(pack["skipped"]) for pack in packs),
            "lost_workers": self.trainer.datamodule.pop_lost_workers(),
        }
        sums |= {name: torch.tensor(float(value), device=self.device) for name, value in counts.items()}
        sums["waited"] = self._per_rank(self.trainer.datamodule.pop_wait_seconds())
        sums["peak_bytes"] = self._per_rank(cost.peak_bytes(self.device))
        sums = self._sum_over_ranks(sums)
        norm = self._update(sums["count"].clamp(min=1), sums["loss"])
        loss = self._log_sums("train", sums)
        self.log("train/lr", self.lr_schedulers().get_last_lr()[-1])
        return {
            **{name: sums[name] for name in _COUNTS & sums.keys()},
            "loss": loss,
            "grad_norm": norm,
            "skipped": [row for pack in packs for row in pack["skipped"] if self._reports],
            "rows": [row for pack in packs for row in pack["rows"]],
        }

    def _update(self, count: Tensor, loss: Tensor) -> Tensor:
        """Take an optimizer step on the mean gradient; return the gradient's norm.

        DDP has averaged over ranks, where a sum is wanted. If the loss of all ranks or the norm is not finite, which is
        the same on every rank, the step has no gradients: no weight changes, but the run's position, which is counted
        in optimizer steps, does.
        """
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        averaged = 1 if self._is_sharded else self.trainer.world_size
        norm = sharding.clip(self._trained(), self.optim["clip"], scale=averaged / count)
        self.log("train/grad_norm", norm)
        if not torch.isfinite(loss) or not torch.isfinite(norm):
            optimizer.zero_grad()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        return norm

    def _log_sums(self, split: str, sums: Mapping[str, Tensor]) -> Tensor:
        """Log the mean loss and the objective's other sums, divided alike; return the loss.

        A sum whose name begins with `rows_` is a number of rows and is not divided.
        """
        count = sums["count"].clamp(min=1)
        loss = sums["loss"] / count
        self.log(f"{split}/loss", loss, prog_bar=True)
        for name in sums.keys() - _COUNTS:
            self.log(f"{split}/{name}", sums[name] if name.startswith("rows_") else sums[name] / count)
        return loss

    def on_validation_epoch_start(self) -> None:
        groups = self.trainer.datamodule.groups()
        self.scores = {name: TaskScore(metric).to(self.device) for name, metric in groups.items()}
        self._valid = {name: torch.zeros((), device=self.device) for name in ("loss", "count")}

    def validation_step(self, batch: dict[str, Pack], number: int) -> Outputs:
        loss, metrics = self.objective(self.net, batch["answered"])
        for name, value in {"loss": loss, "count": self.objective.count(batch["answered"]), **metrics}.items():
            self._valid[name] = self._valid.get(name, 0) + value
        pack = batch["prompts"]
        ends = self.trainer.datamodule.valid_samples.prompt.stop
        settings = GenerationSettings(max_new_tokens=self.max_new_tokens, stop=frozenset(map(self.tokenizer.id, ends)))
        # Ranks decode different numbers of tokens; a sharded net needs all ranks in each forward.
        any_rank_active = (
            partial(self.trainer.strategy.reduce_boolean_decision, all=False) if self._is_sharded else bool
        )
        answers = self.objective.answer(self.net, pack, settings, any_rank_active=any_rank_active)
        sharding.reshard(self.net, self.objective)  # so that a checkpoint can be saved between two steps
        if not self._reports:
            return {"skipped": [], "answers": {}}
        texts = {}
        for row_number, ids in zip(pack["rows"], answers, strict=False):  # an empty pack holds one dummy row
            row = self.trainer.datamodule.target_row(row_number)
            task = tasks.find(row.labels["task"])
            if (name := group(row)) in self.scores:
                answer = texts[row_number] = self.tokenizer.decode(ids, control=task.answer.has_tags)
                reference, hypothesis = task.extract(task.render(row.labels)), task.extract(answer)
                self.scores[name].update([hypothesis], [reference], [language(row)])
        return {"skipped": pack["skipped"], "answers": texts}

    def on_validation_epoch_end(self) -> None:
        self._log_sums("val", self._sum_over_ranks(self._valid))
        for name, score in self.scores.items():
            self.log(f"val/{name}/{score.metric}", score.compute())

    def predict_step(self, pack: Pack, number: int) -> RowResult:
        """Compute loss and gradient of a pack of one row, for `auris replay`. No weight changes."""
        with torch.enable_grad(), watch(self.net) as wrong:
            loss, _ = self.objective(self.net, pack)
            loss = loss / self.objective.count(pack).clamp(min=1)
            loss.backward()
        norms = [parameter.grad.norm() for parameter in self._trained() if parameter.grad is not None]
        self.zero_grad()
        norm = torch.stack(norms).norm() if norms else torch.zeros(())
        return RowResult(float(loss.detach()), float(norm), wrong[0] if wrong else None)

    def _trained(self) -> Iterator[nn.Parameter]:
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    @property
    def _has_no_memory(self) -> bool:
        return any(parameter.is_meta for parameter in self.net.parameters())

    @property
    def _is_sharded(self) -> bool:
        return isinstance(self.trainer.strategy, Sharded)

    @property
    def _reports(self) -> bool:
        return not self._is_sharded or self.trainer.strategy.speaks

    def _without_communication(self) -> Any:
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return block() if block else nullcontext()

    def _per_rank(self, value: float) -> Tensor:
        """Return a vector over all ranks whose sum over ranks holds the value of each."""
        values = torch.zeros(self.trainer.world_size, device=self.device)
        values[self.trainer.global_rank] = value
        return values

    def _sum_over_ranks(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sum tensors over ranks, all at once. Names and shapes are the same on every rank."""
        flat = torch.cat([value.float().flatten() for value in values.values()])
        summed = self.trainer.strategy.reduce(flat * self._reports, reduce_op="sum")
        parts = summed.split([value.numel() for value in values.values()])
        return {name: part.view(values[name].shape) for name, part in zip(values, parts, strict=True)}
