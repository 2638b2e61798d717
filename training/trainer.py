"""Train with Muon and AdamW. The number of tokens sets the learning rate.

A stopped run can be resumed, and every run with the same seed gives the same weights.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional
from transformers import GPT2LMHeadModel

from training.model import new_model
from training.rows import Mix, Sampler
from training.tasks import RECALL

PLANTED_BLOCKS = 2
PLANTED_LR, MATRIX_LR = 1.2e-3, 1.2e-2
"""Muon's learning rates for the matrices of the two planted blocks, and of the other blocks."""
OTHER_LR, POSITION_LR = 1.6e-3, 1e-4
"""AdamW's learning rates for embeddings, biases and norms, and for the positions."""
OTHER_EPSILON = 1e-5
"""AdamW's epsilon. Most tokens of the vocabulary occur in few rows. In every other row the softmax
of the tied head gives each of them a gradient of about 1e-6 in the same direction; a token that
occurs in the row gets 1e-4. With AdamW's default epsilon of 1e-8 the small gradients cause full
steps, and rare tokens drift into one cluster."""
CLIP = 1.0
"""Maximum norm of the gradient of all parameters."""
WARM_UP_STEPS = 60
"""Steps in which the learning rate rises linearly to its full value."""
TOKENS, CONSTANT_TOKENS, LAST_LR = 15_000_000, 7_000_000, 0.02
"""Tokens of the training, tokens at a constant rate, and the final factor on the rate."""
ROWS, LENGTH = 16, 256
"""Rows of a batch, and tokens of a row."""
PARTS = 2
"""Parts of a batch, one per Python thread. torch itself uses one thread, so two cores wait for each
other once per step, not at every operation, and the result does not depend on the core count."""
SAVE_EVERY, LOG_EVERY = 100, 20
"""Steps between two saved states, and between two lines of the log."""


@dataclass(frozen=True)
class Phase:
    """A phase of the training, with its own mix of rows and its own rate.

    Args:
        until: Number of tokens at which the phase ends.
        mix: Shares of the kinds of rows.
        rate: Factor on the learning rates.
    """

    until: int
    mix: Mix
    rate: float


Part = tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor]

COPYING = {"natural": 0.15, "tasks": 0.60, "token lists": 0.10, "repeats": 0.15}
ALL = {"natural": 0.34, "tasks": 0.54, "token lists": 0.06, "repeats": 0.06}
"""Share of each kind of row. The first phase uses `COPYING`, the others `ALL`."""
PHASES = (
    Phase(1_200_000, COPYING, 1.0),
    Phase(4_500_000, ALL, 1.6),
    Phase(TOKENS, ALL, 1.1),
)
"""The first phase has a low rate: the planted heads adapt before larger steps come."""


@dataclass
class Progress:
    """The progress of a training: what a resumed run needs besides tensors.

    Args:
        step: Index of the next step.
        tokens: Tokens used so far.
        seconds: CPU seconds used so far, over all cores.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Trainer:
    """Trains a new model, or resumes from the state in `folder`, up to `TOKENS` tokens.

    The result does not depend on interruptions or on the duration of a step.

    Args:
        sampler: Makes the batches.
        folder: Folder of `state.pt` and `log.jsonl`.
        rows: Rows of a batch.
        length: Tokens of a row.
    """

    def __init__(
        self, sampler: Sampler, folder: Path, rows: int = ROWS, length: int = LENGTH
    ) -> None:
        self.sampler = sampler
        self.folder = folder
        self.rows = rows
        self.length = length
        self.progress = Progress()
        self.model = new_model(len(sampler.tokenizer), sampler.seed)
        self.optimizers = _optimizers(self.model)
        self.pool = ThreadPoolExecutor(PARTS)
        folder.mkdir(parents=True, exist_ok=True)
        if self.state.exists():
            self._load()

    @property
    def state(self) -> Path:
        """Path of the state that a run resumes from."""
        return self.folder / "state.pt"

    def run(self, tokens: int = TOKENS) -> None:
        """Train up to a number of tokens, and save a state every `SAVE_EVERY` steps."""
        while self.progress.tokens < tokens:
            started = time.process_time()
            report = self.take_step()
            self.progress.seconds += time.process_time() - started
            if self.progress.step % LOG_EVERY == 0:
                self._log(report)
            if self.progress.step % SAVE_EVERY == 0:
                self._save()
        self._save()

    def take_step(self) -> dict[str, float]:
        """Train on one batch and return the losses in nats."""
        spent = self.progress.tokens
        phase = next((phase for phase in PHASES if spent < phase.until), PHASES[-1])
        batch = self.sampler.batch(self.progress.step, self.rows, self.length, phase.mix)
        ids, weights = map(torch.from_numpy, batch)
        rate = phase.rate * learning_rate(self.progress.step, spent)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate
        seeds = range(self.progress.step * PARTS, (self.progress.step + 1) * PARTS)
        parts = self.pool.map(self._part, ids.chunk(PARTS), weights.chunk(PARTS), seeds)
        gradients, losses, heavies = zip(*parts, strict=True)
        heavy = torch.cat(heavies)
        for parameter, *shares in zip(self.model.parameters(), *gradients, strict=True):
            parameter.grad = torch.stack(shares).sum(0) / heavy.sum()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        list(self.pool.map(lambda optimizer: optimizer.step(), self.optimizers))
        self.progress.step += 1
        self.progress.tokens += ids.numel()
        loss, recalled = torch.cat(losses), torch.cat(losses)[heavy == RECALL]
        mean = (loss * heavy).sum() / heavy.sum()
        return {"loss": mean.item(), "recall": recalled.mean().item(), "rate": rate}

    def _part(self, ids: torch.Tensor, weights: torch.Tensor, seed: int) -> Part:
        """Return gradients of the weighted sum of some rows' losses, the losses and the weights."""
        losses, heavy = token_losses(self.model, ids, weights, seed)
        gradients = torch.autograd.grad((losses * heavy).sum(), list(self.model.parameters()))
        return gradients, losses.detach(), heavy

    def _log(self, report: dict[str, float]) -> None:
        line = asdict(self.progress) | {key: round(value, 4) for key, value in report.items()}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        fresh = self.state.with_suffix(".new")
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "progress": asdict(self.progress),
            },
            fresh,
        )
        fresh.replace(self.state)

    def _load(self) -> None:
        saved = torch.load(self.state, weights_only=True)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.progress = Progress(**saved["progress"])


def learning_rate(step: int, spent: int) -> float:
    """Return the factor on every learning rate: warm-up, constant, then linear to `LAST_LR`.

    Args:
        step: Index of the step, from 0.
        spent: Tokens used so far.
    """
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    decayed = (min(spent, TOKENS) - CONSTANT_TOKENS) / (TOKENS - CONSTANT_TOKENS)
    return warm * (1 - max(0.0, decayed) * (1 - LAST_LR))


def token_losses(
    model: GPT2LMHeadModel, ids: torch.Tensor, weights: torch.Tensor, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross entropy of every token with a positive weight, and these weights.

    Half of the rows start at a random position, so that the model learns all positions.

    Args:
        model: The model in training.
        ids: Tokens, `(rows, length)`.
        weights: Weights in the loss, `(rows, length)`.
        seed: Seed of the random positions.
    """
    rows, length = ids.shape
    random = torch.Generator().manual_seed(seed)
    offsets = torch.randint(model.config.n_positions - length + 1, (rows, 1), generator=random)
    offsets[::2] = 0
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.transformer(
            ids,
            position_ids=offsets + torch.arange(length),
            attention_mask=torch.ones_like(ids),
            use_cache=False,
        ).last_hidden_state  # (rows, length, width)
        wanted = weights[:, 1:] > 0
        logits = model.lm_head(hidden[:, :-1][wanted])  # (tokens with weight, vocabulary)
    targets = ids[:, 1:][wanted]
    losses = functional.cross_entropy(logits.float(), targets, reduction="none")
    return losses, weights[:, 1:][wanted]


def _optimizers(model: GPT2LMHeadModel) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks, and AdamW for all other parameters.

    Muon is split into two optimizers of three blocks each, so that two threads can step at once.
    """
    blocks = model.transformer.h
    vectors = [vector for vector in blocks.parameters() if vector.ndim == 1]
    others = [*vectors, model.transformer.wte.weight, *model.transformer.ln_f.parameters()]
    groups = [
        {
            "params": [matrix for matrix in block.parameters() if matrix.ndim == 2],
            "lr": PLANTED_LR if i < PLANTED_BLOCKS else MATRIX_LR,
        }
        for i, block in enumerate(blocks)
    ]
    half = len(groups) // 2
    optimizers: list[torch.optim.Optimizer] = [
        *(
            torch.optim.Muon(some, momentum=0.95, weight_decay=0.02)
            for some in (groups[:half], groups[half:])
        ),
        torch.optim.AdamW(
            [
                {"params": others, "lr": OTHER_LR},
                {"params": [model.transformer.wpe.weight], "lr": POSITION_LR},
            ],
            betas=(0.9, 0.95),
            eps=OTHER_EPSILON,
            weight_decay=0.0,
        ),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers
