"""The training loop: one process, or several that share their gradients and stay equal to the last bit.

On a CPU, several processes of one thread each are faster than threads, above all next to other work.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dekr_infer.config.load import load_config
from dekr_infer.model.checkpoint import save
from scripts.demo.training.dataset import VALIDATION_CROP, Batch, Crop, DrawnBatches, make_batch, normalised
from scripts.demo.training.grouped import GroupedNet
from scripts.demo.training.in_memory_eval import load_grouped
from scripts.demo.training.losses import heat_loss, offset_loss, total_loss
from scripts.demo.training.schedule import Length, WeightAverage, rate

STATE = "state.pth"
VALIDATION_SEED = 1_000_003  # far from every training seed
CLIP = 0.1  # longest gradient
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class TrainingOptions:
    """The settings of a training process."""

    cfg: str
    output: Path
    length: Length
    seed: int
    processes: int
    device: str
    precision: str
    lr: float
    resume: bool
    init: Path | None = None  # state or checkpoint to start from, unless a run is resumed
    minutes_between_saves: float = 2.0
    validation_batches: int = 8
    crop: Crop | None = None
    stop_after: int | None = None  # steps in this call; the schedule still ends at `length`


class Trainer:
    """Network, optimizer and average of one process, and how they are saved."""

    def __init__(self, options: TrainingOptions, rank: int) -> None:
        self.options, self.rank = options, rank
        self.device = torch.device(options.device)
        torch.manual_seed(options.seed)
        resumed = options.resume and (options.output / STATE).exists()
        if options.init is not None and not resumed:
            self.network = load_grouped(options.init, options.cfg, widen=True).to(self.device)
        else:
            self.network = GroupedNet(load_config(options.cfg).MODEL.SPEC).to(self.device)
        for module in self.network.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        named = dict(self.network.named_parameters())
        groups = [
            {"params": [p for p in named.values() if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in named.values() if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=options.lr, eps=1e-10, fused=True)
        self.average = WeightAverage(self.network.state_dict())
        self.step, self.seconds = 0, 0.0
        if resumed:
            self._load(torch.load(options.output / STATE, map_location=self.device, weights_only=True))

    def _load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.state = state["average"]
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the state, so that an interrupted run finds either the old or the new state."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state,
            "step": self.step,
            "seconds": self.seconds,
        }
        save(state, self.options.output / STATE)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return heatmap and offset loss of a batch."""
        batch = Batch(*(tensor.to(self.device, non_blocking=True) for tensor in batch))
        mixed = self.options.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
            heat, offset = self.network(normalised(batch.image), batch.cells)
        return heat_loss(heat, batch.heat, batch.foreground), offset_loss(offset, batch.offset, batch.weight)

    def train_step(self, batch: Batch) -> tuple[float, float, float]:
        """Make one step; return heatmap loss, offset loss and the gradient's length before clipping."""
        self.network.train()
        progress = self.options.length.progress(self.step, self.seconds)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr * rate(self.shared(progress))
        heat, offset = self.losses(batch)
        total_loss(heat, offset).backward()
        self._share_gradients()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.average.update(self.network.state_dict(), self.step)
        return float(heat.detach()), float(offset.detach()), float(norm)

    def shared(self, value: float) -> float:
        """Return the first process's value in every process."""
        if self.options.processes == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)

    def _share_gradients(self) -> None:
        if self.options.processes == 1:
            return
        grads = [p.grad for p in self.network.parameters() if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= self.options.processes
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Return mean losses of the averaged weights on whole images that training never sees."""
        kept = {key: value.clone() for key, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.average.state)
        self.network.eval()
        seeds = [(VALIDATION_SEED, index) for index in range(self.options.validation_batches)]
        results = [self.losses(make_batch(seed, VALIDATION_CROP, upright=True)) for seed in seeds]
        self.network.load_state_dict(kept)
        heat, offset = torch.tensor(results).mean(0).tolist()
        return heat, offset


def train(rank: int, options: TrainingOptions, rendezvous: str) -> None:
    """Run the training of one process; `rendezvous` is the file through which several processes connect."""
    with _group(rank, options, rendezvous):
        trainer = Trainer(options, rank)
        last = None if options.stop_after is None else trainer.step + options.stop_after
        loader = DataLoader(
            DrawnBatches(options.seed, rank, trainer.step, options.crop),
            batch_size=None,
            num_workers=1,
            prefetch_factor=4,
        )
        report = Report(trainer)
        previous, saved = time.monotonic(), time.monotonic()
        for batch in loader:
            done = options.length.progress(trainer.step, trainer.seconds) >= 1 or trainer.step == last
            if trainer.shared(float(done)):
                break
            report.add(len(batch.image), trainer.train_step(batch))
            now = time.monotonic()
            trainer.seconds += now - previous
            previous = now
            if rank == 0 and now - saved > 60 * options.minutes_between_saves:
                trainer.save()
                report.validation()
                saved = now
        if rank == 0:
            trainer.save()
            report.validation()


@contextlib.contextmanager
def _group(rank: int, options: TrainingOptions, rendezvous: str) -> Iterator[None]:
    if options.processes == 1:
        yield
        return
    _keep_memory()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=options.processes)
    yield
    dist.destroy_process_group()


def _keep_memory() -> None:
    """Let glibc keep freed memory: fresh pages for every large tensor cost more than the arithmetic."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap too
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap never shrinks


class Report:
    """Progress lines on stdout, from the first process."""

    EVERY = 20.0  # seconds

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.sums, self.images, self.steps = torch.zeros(3, dtype=torch.float64), 0, 0
        self.since = time.monotonic()

    def add(self, images: int, values: tuple[float, float, float]) -> None:
        """Include a step's images, losses and gradient; print a line every `EVERY` seconds."""
        self.images += images * self.trainer.options.processes
        self.sums += torch.tensor(values, dtype=torch.float64)
        self.steps += 1
        elapsed = time.monotonic() - self.since
        if elapsed < self.EVERY or self.trainer.rank:
            return
        heat, offset, norm = (self.sums / self.steps).tolist()
        progress = self.trainer.options.length.progress(self.trainer.step, self.trainer.seconds)
        left = self.trainer.seconds * (1 / max(progress, 1e-6) - 1) / 60
        rate_now = self.trainer.optimizer.param_groups[0]["lr"]
        print(
            f"step {self.trainer.step} heat {heat:.6f} offset {offset:.4f} gradient {norm:.3f} lr {rate_now:.2e} "
            f"{self.images / elapsed:.1f} images/s, {left:.1f} min left",
            flush=True,
        )
        self.sums.zero_()
        self.images, self.steps, self.since = 0, 0, time.monotonic()

    def validation(self) -> None:
        """Print the losses on images that training never sees."""
        if not self.trainer.options.validation_batches:
            return
        heat, offset = self.trainer.validate()
        print(f"step {self.trainer.step} validation heat {heat:.6f} offset {offset:.4f}", flush=True)
