"""Fit of an MTP layer to the model that it drafts for, which stays as it is.

The layer of DeepSeek-V3 drafts token i + 2 from the model's state at i and token i + 1. Training
the model without it lets fewer drafts be kept. Here it learns the tokens that the model was trained
on, from states that are computed once; embeddings and head are the model's, and do not learn.
Source: arXiv 2412.19437, section 2.2; vllm-project/speculators#366 fits modules the same way.

    FOLDER/states-*, fit.pt    what a killed run resumes from; removed at the end
"""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dstools_converters.checkpoint.folder import INDEX, Checkpoint, open_checkpoint
from dstools_converters.checkpoint.inventory import Inventory
from dstools_converters.checkpoint.tensors import restored
from dstools_converters.errors import DstoolsError
from dstools_converters.families.names import Role, TensorName
from dstools_converters.files import replacing
from dstools_converters.model.architecture import read_architecture
from dstools_converters.model.decoder import MTPLayer, RMSNorm
from dstools_converters.model.rotary import rotary
from dstools_converters.sidefiles.carried import carried_files
from dstools_distill import records
from dstools_distill.loading import DTYPES
from dstools_distill.recipe.settings import Mtp
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.stage import TIMING, Report, Work
from dstools_distill.tokens.invariant import IGNORED
from dstools_distill.training.checkpoints import CURVE
from dstools_distill.training.sft import ROWS, check_rows, load_rows
from dstools_distill.training.states import States, last_states, padded
from dstools_distill.training.untrained import with_one_layer

log = logging.getLogger(__name__)
FIT = "fit.pt"
HELD_OUT = 20  # one row in 20 is not trained on
LOGGED = 10  # steps of a line of the curve
SAVED = 100  # steps between checkpoints, of which a short run has ten


def mtp(settings: Mtp, inputs: Inputs, work: Work) -> Report:
    """Fit the MTP layer of `inputs.model` on rendered rows, and write a model folder.

    All other bytes of the model are copied. Drafts kept are the share of trained-on tokens of
    held-out rows where the layer's first choice is the model's. Where the fit keeps fewer than the
    layer did before, the layer stays as it was, and the report says so. Raises DstoolsError for a
    model that is quantized or has another number of MTP layers than one, for too few rows, and for
    rows that the model has too few positions or tokens for.
    """
    assert inputs.model is not None
    rendered = load_rows(inputs.rows / ROWS)
    with open_checkpoint(inputs.model) as checkpoint:
        inventory, config = with_one_layer(checkpoint), checkpoint.config
        positions = config["max_position_embeddings"]
        check_rows(inputs.rows / ROWS, rendered, inventory.model.vocab_size, positions)
        rows = Rows(rendered["input_ids"][:], rendered["labels"][:])
        training, held_out = _split(rows, settings, inputs.rows / ROWS)
        architecture = read_architecture(config)
        states = last_states(inventory, architecture, rows.ids, work)
        drafter = Drafter(inventory)
        before = drafter.kept(held_out, rows, states, settings.batch_size)
        curve = _fit(drafter, training, rows, states, settings, work)
        weights = drafter.weights(inventory)
        drafter.load(weights)  # as they are written, rounded to the checkpoint's dtypes
        after, layer = drafter.kept(held_out, rows, states, settings.batch_size), "fitted"
        if after < before:
            layer = f"as it was, since the fit kept {after:.1%}"
            log.warning("drafts kept: %.1f %%; the layer stays %s", 100 * before, layer)
            after = before
            drafter.reset(inventory)
            weights = drafter.weights(inventory)
        checkpoint.check_unmoved()
        _write(checkpoint, weights, work.folder)
        parameters = sum(info.numel for info in checkpoint.tensors.values())
    for pattern in ("states-*", "spill-*", FIT):  # spills, where a run was killed
        for path in work.folder.glob(pattern):
            path.unlink()
    return {
        "in": len(rendered),
        "out": len(rendered),
        "dropped": {},
        "held_out": len(held_out),
        "steps": curve[-1]["step"],
        "parameters": parameters,
        "trained_parameters": sum(value.numel() for value in drafter.trained()),
        "drafts_kept": {"before": round(before, 4), "after": round(after, 4)},
        "layer": layer,
    }


class Rows(NamedTuple):
    """Rendered rows."""

    ids: list[list[int]]
    labels: list[list[int]]


def _split(rows: Rows, settings: Mtp, path: Path) -> tuple[list[int], list[int]]:
    """Return the numbers of the rows to train on and of those held out, drawn by the seed."""
    usable = [n for n, labels in enumerate(rows.labels) if any(x != IGNORED for x in labels[2:])]
    if len(usable) < 2:
        raise DstoolsError(
            f"{path}: {len(usable)} rows can be trained on", "two or more are needed"
        )
    draw = torch.Generator().manual_seed(settings.seed)
    drawn = [usable[n] for n in torch.randperm(len(usable), generator=draw).tolist()]
    count = max(1, len(drawn) // HELD_OUT)
    return drawn[count:], drawn[:count]


# -------------------------------------------------------------------------------------- the layer


class Batch(NamedTuple):
    """Padded rows, B of them, S tokens each."""

    ids_BS: Tensor
    labels_BS: Tensor
    states_BSD: Tensor  # before the model's final norm

    @classmethod
    def of(cls, numbers: list[int], rows: Rows, states: States) -> "Batch":
        """Return these rows with their states."""
        ids = [rows.ids[n] for n in numbers]
        read = [states.read(n, len(row)) for n, row in zip(numbers, ids, strict=True)]
        return cls(
            padded(ids, 0),
            padded([rows.labels[n] for n in numbers], IGNORED),
            nn.utils.rnn.pad_sequence(read, batch_first=True),
        )


class Drafter:
    """The MTP layer of a model in float32, and what it shares with the model."""

    def __init__(self, inventory: Inventory) -> None:
        model, self.model = inventory.model, inventory.model
        self.architecture = read_architecture(inventory.checkpoint.config)
        with torch.device("meta"):
            self.layer = MTPLayer(self.architecture, model.num_hidden_layers)
        names = (name for name, _ in model.weights() if name.is_mtp)
        self.names = {f"{model.spelling.path(name)}.{name.part}": name for name in names}
        self.reset(inventory)
        for path, value in self.layer.named_parameters():
            # the bias balances the experts' load, which no gradient does
            value.requires_grad_(not path.endswith("e_score_correction_bias"))
        head: Role = "embed_tokens" if model.is_tied else "lm_head"
        shared: list[Role] = ["embed_tokens", head, "norm"]
        self.embeddings, self.head, norm = (
            restored(inventory, inventory.info(TensorName(role, "weight"))) for role in shared
        )
        self.norm = RMSNorm(model.hidden_size, self.architecture.rms_norm_eps)
        self.norm.weight = nn.Parameter(norm, requires_grad=False)

    def reset(self, inventory: Inventory) -> None:
        """Set the weights of the layer to those of the checkpoint."""
        names = self.names.values()
        self.load({self.model.spell(n): restored(inventory, inventory.info(n)) for n in names})

    def load(self, weights: dict[str, Tensor]) -> None:
        """Set the weights of the layer by their names in the checkpoint."""
        state = {path: weights[self.model.spell(name)].float() for path, name in self.names.items()}
        # the first load fills a layer on meta; later ones keep the parameters that are trained
        self.layer.load_state_dict(state, assign=self.layer.eh_proj.weight.is_meta)

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that learn."""
        return [value for value in self.layer.parameters() if value.requires_grad]

    def weights(self, inventory: Inventory) -> dict[str, Tensor]:
        """Return what replaces tensors of the checkpoint, by name, in their dtypes.

        The checkpoint's copies of embeddings and head, where it has them, are the model's again.
        """
        state, copies = self.layer.state_dict(), (self.embeddings, self.head)
        values = {self.model.spell(name): state[path] for path, name in self.names.items()}
        roles: tuple[Role, ...] = ("mtp_embed_tokens", "shared_head")
        for role, copy in zip(roles, copies, strict=True):
            name = TensorName(role, "weight", self.model.num_hidden_layers, None, True)
            if (spelled := self.model.spell(name)) in inventory.tensors:
                values[spelled] = copy
        return {name: x.to(DTYPES[inventory.tensors[name].dtype]) for name, x in values.items()}

    def scores(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the layer's logits [T, V] for each trained-on token, the model's, and the ids [T].

        Those are all tokens with a label but the first two of a row.
        """
        normed_BSD = self.norm(batch.states_BSD)
        embedded_BSD = F.embedding(batch.ids_BS[:, 1:], self.embeddings)
        angles = rotary(self.architecture, torch.arange(embedded_BSD.shape[1]))
        drafted_BSD = self.layer(embedded_BSD, normed_BSD[:, :-1], angles)[:, :-1]
        labels_BS = batch.labels_BS[:, 2:]
        is_target = labels_BS != IGNORED
        drafted, own = drafted_BSD[is_target], normed_BSD[:, 1:-1][is_target]
        return F.linear(drafted, self.head), F.linear(own, self.head), labels_BS[is_target]

    @torch.inference_mode()
    def kept(self, numbers: list[int], rows: Rows, states: States, size: int) -> float:
        """Return the share of trained-on tokens where the layer's first choice is the model's."""
        same = total = 0
        for begin in range(0, len(numbers), size):
            batch = Batch.of(numbers[begin : begin + size], rows, states)
            drafted, own, _ = self.scores(batch)
            same += int((drafted.argmax(-1) == own.argmax(-1)).sum())
            total += len(drafted)
        return same / total


# --------------------------------------------------------------------------------------- training


def _fit(
    drafter: Drafter, numbers: list[int], rows: Rows, states: States, settings: Mtp, work: Work
) -> list[dict[str, Any]]:
    """Train the layer in place, from the last checkpoint if there is one.

    Returns the curve, which is written as it grows.
    """
    steps = settings.max_steps or max(
        1, round(settings.epochs * len(numbers) / settings.batch_size)
    )
    adam = torch.optim.AdamW(drafter.trained(), settings.learning_rate, (0.9, 0.95), weight_decay=0)
    file, done, curve = work.folder / FIT, 0, list[dict[str, Any]]()
    if file.exists():
        kept = torch.load(file, weights_only=True)
        drafter.layer.load_state_dict(kept["layer"])
        adam.load_state_dict(kept["optimizer"])
        done, curve = kept["step"], kept["curve"]
    every = min(SAVED, max(1, steps // 10))
    log.info("fitting the MTP layer from step %d of %d", done, steps)
    with work.bar(steps, "steps") as progress:
        progress(done)
        for step, chosen in enumerate(_order(numbers, steps, settings), start=1):
            if step <= done:
                continue
            rate = settings.learning_rate * (1 - (step - 1) / steps)
            loss = _step(drafter, adam, Batch.of(chosen, rows, states), rate)
            progress(1)
            if step % LOGGED == 0 or step == steps:
                curve.append({"step": step, "loss": loss, "learning_rate": rate})
                records.write(work.folder / CURVE, curve)
            if step % every == 0 and step < steps:
                state = {"layer": drafter.layer.state_dict(), "optimizer": adam.state_dict()}
                with replacing(file) as target:
                    torch.save(state | {"step": step, "curve": curve}, target)
    return curve


def _step(drafter: Drafter, adam: torch.optim.AdamW, batch: Batch, rate: float) -> float:
    """Update the layer by one batch, and return the loss before it in nats a token."""
    drafted, _, wanted = drafter.scores(batch)
    loss = F.cross_entropy(drafted, wanted)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(drafter.trained(), 1.0)
    for group in adam.param_groups:
        group["lr"] = rate
    adam.step()
    adam.zero_grad()
    return loss.item()


def _order(numbers: list[int], steps: int, settings: Mtp) -> Iterator[list[int]]:
    """Yield the rows of each step; each epoch is a new permutation."""
    queue: list[int] = []
    epoch = 0
    for _ in range(steps):
        while len(queue) < settings.batch_size:
            draw = torch.Generator().manual_seed(settings.seed + epoch)
            queue += [numbers[n] for n in torch.randperm(len(numbers), generator=draw).tolist()]
            epoch += 1
        yield queue[: settings.batch_size]
        del queue[: settings.batch_size]


# ------------------------------------------------------------------------------------- the result


def _write(checkpoint: Checkpoint, weights: dict[str, Tensor], folder: Path) -> None:
    """Copy a checkpoint and the files beside it, then overwrite tensors in their places."""
    source = checkpoint.folder
    names = {"config.json", *checkpoint.shards, *({INDEX} if (source / INDEX).exists() else ())}
    files = {name: source / name for name in names} | {
        name: path for name, path in carried_files(source).items() if name not in (TIMING, CURVE)
    }
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    for name, weight in weights.items():
        info = checkpoint.tensors[name]
        content = weight.contiguous().view(torch.uint8).numpy().tobytes()
        assert len(content) == info.nbytes
        with (folder / info.shard).open("r+b") as file:
            file.seek(info.offset)
            file.write(content)
