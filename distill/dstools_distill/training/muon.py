"""Muon for the matrices inside the layers, AdamW for the rest, float32 masters of bfloat16 weights.

A small model learns in half the steps with it. Both are torch's; "match_rms_adamw" scales Muon's
updates by 0.2 sqrt(max(rows, columns)), so that both share a learning rate and a weight decay.
Sources: Keller Jordan, kellerjordan.github.io/posts/muon; arXiv 2502.16982.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from dstools_converters.errors import DstoolsError

NS_STEPS = 3  # of Newton-Schulz; five make singular values a little more even, for more time


class Muon(Optimizer):
    """Trains every parameter of `model` that requires a gradient.

    AdamW with `betas` trains embeddings, head, norms and biases. Weights that are not float32 have
    a float32 master, rounded into them after each step, so that small updates are not lost.
    Masters and state are part of state_dict; resuming from it gives the same bits.
    """

    def __init__(
        self, model: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        ends = {id(layer.weight) for layer in _ends(model) if layer is not None}
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for parameter in model.parameters():
            if parameter.requires_grad:
                is_inside = parameter.ndim == 2 and id(parameter) not in ends
                (matrices if is_inside else others).append(parameter)
        groups = [{"params": matrices, "is_muon": True}, {"params": others, "is_muon": False}]
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], defaults)
        self._masters: dict[Tensor, Tensor] = {}  # by weight that is not float32
        self._optimizers: list[Optimizer] = []  # one per group, see _start

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        assert closure is None
        if not self._optimizers:
            self._start()
        for weight, master in self._masters.items():
            master.grad = None if weight.grad is None else weight.grad.float()
        for group, optimizer in zip(self.param_groups, self._optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = group["lr"]  # set by a scheduler
            optimizer.step()
        for weight, master in self._masters.items():
            master.grad = None
            weight.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        """Return masters and the states of both optimizers, empty before the first step."""
        return super().state_dict() | {
            "masters": list(self._masters.values()),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if "optimizers" not in state_dict:
            raise DstoolsError(
                "the interrupted training is of an earlier version of dstools",
                "remove its folder, which ends in .incomplete, from OUT/store, and run again",
            )
        super().load_state_dict(state_dict)
        if not state_dict["optimizers"]:
            return
        self._start()
        for master, value in zip(self._masters.values(), state_dict["masters"], strict=True):
            master.copy_(value)
        for optimizer, state in zip(self._optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)

    def _start(self) -> None:
        """Make masters and optimizers; not before the weights are on the device that trains."""
        weights = [weight for group in self.param_groups for weight in group["params"]]
        self._masters = {w: w.detach().float() for w in weights if w.dtype != torch.float32}
        self._optimizers = []
        for group in self.param_groups:
            trained = [self._masters.get(weight, weight) for weight in group["params"]]
            rates = {"lr": group["lr"], "weight_decay": group["weight_decay"]}
            if group["is_muon"]:
                optimizer: Optimizer = torch.optim.Muon(
                    trained, **rates, ns_steps=NS_STEPS, adjust_lr_fn="match_rms_adamw"
                )
            else:
                optimizer = AdamW(trained, **rates, betas=group["betas"])
            self._optimizers.append(optimizer)


def _ends(model: nn.Module) -> tuple[Any, Any]:
    """Return the embedding and the head of a transformers model."""
    return model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
