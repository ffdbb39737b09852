"""LightningModule of every kind of training: steps, logging and weights.

Optimisation is manual. A batch of Lightning is one optimizer step: the list of this rank's packs. Gradients are
communicated with the last pack only, and divided once, by the objective's count (the number of supervised tokens or of
pairs) over all packs and ranks. With tensor parallelism, several ranks compute the same rows together; one of these
ranks counts, scores and reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Self, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from auris import config
from auris.config import Config
from auris.data.batches import EvaluationBatch
from auris.data.datamodule import AudioDataModule
from auris.data.rows import answer_language, group
from auris.model import adapters, llm
from auris.model.audio_lm import AudioLM
from auris.model.compiled import compile_blocks
from auris.model.generation import GenerationSettings
from auris.model.pack import Pack
from auris.model.weights.loading import InitialWeights
from auris.text import tasks
from auris.text.tokenizer import Tokenizer
from auris.training import alignment, cost, encoder_frames, optim, references, sharding
from auris.training.faults import RowResult, watch_nonfinite
from auris.training.lightning_types import datamodule
from auris.training.objectives.align import Align
from auris.training.objectives.dpo import DPO
from auris.training.objectives.objective import Objective
from auris.training.strategy import ShardedStrategy
from auris.training.task_score import TaskScore

# Names of the sums of a step that are returned to the callbacks. All other sums are metrics of the objective.
_CALLBACK_SUMS = {
    *("loss", "count", "curve_sums", *cost.WORKLOAD_FIELDS, "idle", "audio_seconds"),
    *("rows_read", "rows_unusable", "lost_workers", "waited", "peak_bytes"),
}


Outputs = dict[str, Any]
"""Values that a step returns to the callbacks, by name."""


class AudioLMModule(L.LightningModule):
    """LightningModule that trains an `AudioLM` on an objective.

    Args:
        net: The model on the meta device; `configure_model` allocates its memory and loads its weights.
        objective: Computes the loss of a pack and responds to prompts.
        tokenizer: Decodes responses in validation.
        optim: The optimizer as `_target_` with its arguments, and the keys `optim.SCHEDULE_KEYS` (Qwen-Audio Table 6).
        max_steps: Number of steps of the run and of its learning-rate schedule.
        trainable: Names of the trained parts of the net (`optim.find_parts`); all others are frozen.
        lora: Settings of LoRA, used if `trainable` contains `llm.lora` (`adapters.attach`).
        initial: Sources of initial weights, in the order in which they are loaded. Later sources replace the weights of
            earlier sources.
        max_new_tokens: Largest number of tokens of a response in validation.
        seed: Seed of the random initial weights.
        compile: Backend of torch.compile for the blocks of encoder and LLM; None does not compile.
        config: The resolved config, which every checkpoint contains.
    """

    def __init__(
        self,
        *,
        net: AudioLM,
        objective: Objective,
        tokenizer: Tokenizer,
        optim: Config,
        max_steps: int,
        trainable: Sequence[str],
        lora: adapters.LoraSettings | None = None,
        initial: Sequence[InitialWeights] = (),
        max_new_tokens: int = 256,
        seed: int = 0,
        compile: str | None = None,
        config: Config | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.save_hyperparameters({"recipe": config or {}})
        self.net, self.objective, self.tokenizer = net, objective, tokenizer
        self.optim, self.max_steps, self.trainable = dict(optim), max_steps, list(trainable)
        self.lora, self.initial, self.max_new_tokens, self.seed = lora, initial, max_new_tokens, seed
        self.compile_with = compile
        self.scores: dict[str, TaskScore] = {}  # group of validation rows, such as `asr en` -> score
        self.meshes: sharding.Meshes | None = None  # set by a strategy that shards the net

    def configure_model(self) -> None:
        """Attach adapters, freeze parts, shard the net, allocate memory, load the initial weights, and compile."""
        if not self._is_on_meta_device:
            return  # Lightning calls this more than once
        reference = references.copy_for_live_reference(self.objective, self.net)  # without adapters
        adapters.attach(self.net, self.trainable, token_ids=self.tokenizer.added_ids, lora=self.lora)
        optim.freeze(self.net, self.trainable)
        device = "cpu"
        if self.meshes is not None:
            sharding.shard(self.net, self.meshes)
            device = self.trainer.strategy.root_device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            sharding.materialise(self.net, device, draw=not any(source.is_complete for source in self.initial))
            sharding.materialise(self.objective, "cpu")
        if self.meshes is not None:
            sharding.shard_objective(self.objective, self.meshes)
        for source in self.initial:
            source.load(self.net, seed=self.seed)
        with sharding.ShardIndependentDraws():
            adapters.initialise(self.net, seed=self.seed)
        # The reference has the initial weights. A resumed run loads its checkpoint later, so it still has them here.
        self._provide_reference(reference)
        if isinstance(self.objective, Align):
            alignment.set_classes(self.objective, datamodule(self.trainer))
        if self.has_cached_frames:
            config, tensor_parallel = self.hparams["recipe"], self.meshes.n_copies if self.meshes else 1
            encoder_frames.attach(self.net, self.trainer, config=config, tensor_parallel=tensor_parallel)
            if reference is not None:  # it gets the same frames as the net
                reference.n_cached_blocks = self.net.n_cached_blocks
        if self.compile_with is not None:
            compile_blocks([*self.net.encoder.blocks, *llm.decoder_layers(self.net.llm)], self.compile_with)

    def _provide_reference(self, reference: AudioLM | None) -> None:
        """Give preference training its reference model, or the cached log-probabilities under that model.

        Args:
            reference: Copy of the net if the reference is computed in every step; None if it is cached.
        """
        if not isinstance(self.objective, DPO):
            return
        meshes = self.meshes
        if reference is not None:
            device = self.trainer.strategy.root_device
            references.start_live_reference(self.objective, self.net, reference, device=device, meshes=meshes)
        else:
            tensor_parallel = meshes.n_copies if meshes else 1  # number of ranks that compute the same rows together
            references.attach_cached_logps(
                self.net, self.trainer, config=self.hparams["recipe"], tensor_parallel=tensor_parallel
            )

    def cpu(self) -> Self:
        """Move to the CPU; do nothing while the net is on the meta device.

        Lightning calls this method after every error. An error in this method would hide the original error.
        """
        return self if self._is_on_meta_device else super().cpu()

    def configure_optimizers(self) -> tuple[list, list]:
        """Return the optimizer with its parameter groups, and the learning-rate schedule."""
        settings = self.optim
        groups = optim.parameter_groups(
            self.net,
            self.objective,
            lr=settings["lr"],
            weight_decay=settings["weight_decay"],
            layer_decay=settings["layer_decay"],
            lr_factors=settings["lr_factors"],
        )
        optimizer_settings = {key: value for key, value in settings.items() if key not in optim.SCHEDULE_KEYS}
        optimizer = config.build({**optimizer_settings, "_partial_": True})(groups)
        schedule = optim.cosine_schedule(
            optimizer,
            warmup_steps=settings["warmup_steps"],
            max_steps=self.max_steps,
            floor=settings["min_lr"] / settings["lr"],
        )
        return [optimizer], [schedule]

    def training_step(self, packs: list[Pack], step: int) -> Outputs:
        """Take an optimizer step on the packs of this rank.

        Metrics are logged. The returned values are sums over all ranks, with these exceptions: `loss` is a mean,
        `grad_norm` is the norm of the mean gradient, `update_norm` is the learning rate times the clipped norm,
        `waited` and `peak_bytes` have one value for each rank, and `rows` and `skipped` list rows of this rank only.
        """
        sums = {name: torch.zeros((), device=self.device) for name in ("loss", "count")}
        for pack_number, pack in enumerate(packs):
            is_last = pack_number == len(packs) - 1
            with nullcontext() if is_last else self._without_communication():
                loss, metrics = self.objective(self.net, pack)
                self.manual_backward(loss)
            pack_sums = {"loss": loss.detach(), "count": self.objective.count(pack), **metrics}
            for name, value in {**pack_sums, **cost.count_workload(pack)}.items():
                sums[name] = sums.get(name, 0) + value
        counts = {
            "audio_seconds": sum(pack["audio_seconds"] for pack in packs),
            "rows_read": sum(len(pack["rows"]) + len(pack["skipped"]) for pack in packs),
            "rows_unusable": sum(len(pack["skipped"]) for pack in packs),
            "lost_workers": self._data.pop_replacements(),
        }
        sums |= {name: torch.tensor(float(value), device=self.device) for name, value in counts.items()}
        sums["waited"] = self._per_rank(self._data.pop_wait_seconds())
        sums["peak_bytes"] = self._per_rank(cost.measure_peak_bytes(self.device))
        sums = self._sum_over_ranks(sums)
        norm, update = self._update(sums["count"].clamp(min=1), sums["loss"])
        loss = self._log_sums("train", sums)
        self.log("train/lr", self._schedule.get_last_lr()[-1])
        return {
            **{name: sums[name] for name in _CALLBACK_SUMS & sums.keys()},
            "loss": loss,
            "grad_norm": norm,
            "update_norm": update,
            "skipped": [row for pack in packs for row in pack["skipped"] if self._is_reporter],
            "rows": [row for pack in packs for row in pack["rows"]],
        }

    def _update(self, count: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Take an optimizer step on the mean gradient; return its norm, and the learning rate times the clipped norm.

        If the summed loss or one of these norms is not finite, gradients are removed before the step. All three are
        equal on all ranks. No weight changes then, but the position of the run advances, because it is the number of
        optimizer steps.

        Args:
            count: Number by which the summed gradient is divided.
            loss: Loss summed over all ranks.
        """
        # `configure_optimizers` returns a single optimizer.
        optimizer, schedule = cast("LightningOptimizer", self.optimizers()), self._schedule
        # A sharded net sums gradients over ranks. DDP averages them, and the number of ranks turns the mean into a sum.
        sum_factor = 1 if self._is_sharded else self.trainer.world_size
        norm = sharding.clip_gradients(self._trained_parameters(), self.optim["clip"], scale=sum_factor / count)
        self.log("train/grad_norm", norm)
        # The gradient may be finite and what is applied to the weights not, if a user's schedule fails.
        clipped_norm = norm.clamp(max=self.optim["clip"]) if self.optim["clip"] else norm
        update = clipped_norm * max(group["lr"] for group in optimizer.param_groups)
        if not torch.isfinite(torch.stack([loss, norm, update])).all():
            optimizer.zero_grad()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        return norm, update

    def _log_sums(self, split: str, sums: Mapping[str, Tensor]) -> Tensor:
        """Log the loss and the metrics of the objective, divided by the objective's count; return the mean loss.

        A sum whose name begins with `rows_` is a number of rows and is not divided.
        """
        count = sums["count"].clamp(min=1)
        loss = sums["loss"] / count
        self.log(f"{split}/loss", loss, prog_bar=True)
        for name in sums.keys() - _CALLBACK_SUMS:
            self.log(f"{split}/{name}", sums[name] if name.startswith("rows_") else sums[name] / count)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Reset the scores and sums of the validation."""
        groups = self._data.scored_groups()
        self.scores = {group_name: TaskScore(metric).to(self.device) for group_name, metric in groups.items()}
        self._valid_sums = {name: torch.zeros((), device=self.device) for name in ("loss", "count")}

    def validation_step(self, batch: EvaluationBatch, batch_number: int) -> Outputs:
        """Compute the loss of a pack and score the responses to its prompts; return skipped rows and responses."""
        loss, metrics = self.objective(self.net, batch["answered"])
        for name, value in {"loss": loss, "count": self.objective.count(batch["answered"]), **metrics}.items():
            self._valid_sums[name] = self._valid_sums.get(name, 0) + value
        pack = batch["prompts"]
        stop = frozenset(map(self.tokenizer.id, self._data.valid_samples.prompt.stop))
        settings = GenerationSettings(max_new_tokens=self.max_new_tokens, stop=stop)
        # Ranks decode different numbers of tokens, but a sharded net needs all ranks in each forward, so every rank
        # continues until no rank is active.
        any_rank_active = (
            partial(self.trainer.strategy.reduce_boolean_decision, all=False) if self._is_sharded else bool
        )
        responses = self.objective.answer(self.net, pack, settings, any_rank_active=any_rank_active)
        sharding.reshard(self.net, self.objective)  # so that a checkpoint can be saved before the next batch
        if not self._is_reporter:
            return {"skipped": [], "answers": {}}
        answers = {}
        for row_number, ids in zip(pack["rows"], responses, strict=False):  # an empty pack has a dummy response
            row = self._data.scored_row(row_number)
            task = tasks.get_task(row.labels["task"])
            if (group_name := group(row)) in self.scores:
                answer = answers[row_number] = self.tokenizer.decode(ids, keep_control_tokens=task.answer.has_tags)
                reference, hypothesis = task.extract(task.render(row.labels)), task.extract(answer)
                self.scores[group_name].update([hypothesis], [reference], [answer_language(row)])
        return {"skipped": pack["skipped"], "answers": answers}

    def on_validation_epoch_end(self) -> None:
        """Log the loss and the scores over all ranks."""
        self._log_sums("val", self._sum_over_ranks(self._valid_sums))
        for group_name, score in self.scores.items():
            self.log(f"val/{group_name}/{score.metric}", score.compute())

    def predict_step(self, pack: Pack, batch_number: int) -> RowResult:
        """Compute the loss and the gradient of a pack of one row, for `auris replay`. No weight changes."""
        with torch.enable_grad(), watch_nonfinite(self.net) as nonfinite_modules:
            loss, _ = self.objective(self.net, pack)
            loss = loss / self.objective.count(pack).clamp(min=1)
            loss.backward()
        norms = [parameter.grad.norm() for parameter in self._trained_parameters() if parameter.grad is not None]
        self.zero_grad()
        norm = torch.stack(norms).norm() if norms else torch.zeros(())
        return RowResult(float(loss.detach()), float(norm), nonfinite_modules[0] if nonfinite_modules else None)

    def _trained_parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    @property
    def has_cached_frames(self) -> bool:
        """Whether the output of the encoder's frozen blocks is cached (`training.encoder_frames`)."""
        config = self.hparams["recipe"]
        return bool(config) and config["data"]["encoder_frames"] == "cached"

    @property
    def _data(self) -> AudioDataModule:
        return datamodule(self.trainer)

    @property
    def _schedule(self) -> torch.optim.lr_scheduler.LRScheduler:
        # `configure_optimizers` returns a single schedule.
        return cast("torch.optim.lr_scheduler.LRScheduler", self.lr_schedulers())

    @property
    def _is_on_meta_device(self) -> bool:
        return any(parameter.is_meta for parameter in self.net.parameters())

    @property
    def _is_sharded(self) -> bool:
        return isinstance(self.trainer.strategy, ShardedStrategy)

    @property
    def _is_reporter(self) -> bool:
        """Whether this rank counts, scores and reports. Only one of the ranks that compute the same rows does."""
        strategy = self.trainer.strategy
        return not isinstance(strategy, ShardedStrategy) or strategy.is_reporter

    def _without_communication(self) -> AbstractContextManager[None]:
        """Return a context in which backward accumulates gradients without communication."""
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return block() if block else nullcontext()

    def _per_rank(self, value: float) -> Tensor:
        """Return a vector with the value at this rank's index and zeros elsewhere.

        The sum of these vectors over all ranks contains the values of all ranks.
        """
        values = torch.zeros(self.trainer.world_size, device=self.device)
        values[self.trainer.global_rank] = value
        return values

    def _sum_over_ranks(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sum tensors over ranks in a single collective operation. Names and shapes must be equal on all ranks."""
        flat = torch.cat([value.float().flatten() for value in values.values()])
        summed = self.trainer.strategy.reduce(flat * self._is_reporter, reduce_op="sum")
        parts = summed.split([value.numel() for value in values.values()])
        return {name: part.view(values[name].shape) for name, part in zip(values, parts, strict=True)}
