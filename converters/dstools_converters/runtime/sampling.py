"""How tokens are drawn, as a user asks for it; needs no torch."""

from dataclasses import dataclass

from dstools_converters.errors import DstoolsError

MIN_TEMPERATURE = 1e-6  # below it, logits may overflow


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Raises DstoolsError for a temperature below MIN_TEMPERATURE that is not 0, or a `top_p` outside
    of 0 to 1.
    """

    temperature: float = 0.0  # 0: the token with the largest logit
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < float("inf")):
            raise DstoolsError(
                f"temperature {self.temperature:g} is not 0, nor finite and at least "
                f"{MIN_TEMPERATURE:g}",
                "use 0 for the most probable token",
            )
        if not 0 <= self.top_p <= 1:
            raise DstoolsError(f"top_p {self.top_p:g} is not between 0 and 1", "1 turns it off")
