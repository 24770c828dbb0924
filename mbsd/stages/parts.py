"""The parts of a model that may have learning rates of their own: its image stem, its backbone, its head."""

from __future__ import annotations

from mbsd.config.run import OptimConfig
from mbsd.errors import UserError
from mbsd.optim.groups import PartRates
from mbsd.stages.stage import Objective

PARTS = ("backbone", "image", "head")


def part_rates(objective: Objective, optim: OptimConfig) -> PartRates | None:
    """The rates of the objective's parts, as multiples; None where all are trained at the same, 1.

    Parts of multiple 0 are frozen here: their parameters get no gradient and are in no optimizer.

    Raises:
        UserError: a part with a multiple other than 1 has no parameters that are trained.
    """
    multiples = {part: float(getattr(optim, part)) for part in PARTS}
    if set(multiples.values()) == {1.0}:
        return None
    part_of = parts_of(objective)
    trained = {part_of[name] for name, p in objective.named_parameters() if p.requires_grad}
    for part, multiple in multiples.items():
        if multiple != 1.0 and part not in trained:
            raise UserError(
                f"optim.{part}={multiple:g}: a {objective.model.config.architecture} trains no parameters of that part "
                "here: remove it"
            )
    for name, parameter in objective.named_parameters():
        if multiples[part_of[name]] == 0:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in objective.parameters()):
        raise UserError(
            f"optim: {', '.join(f'{part}={multiple:g}' for part, multiple in multiples.items())} leave nothing to "
            "train in this model; raise one above 0"
        )
    return PartRates({part: multiple for part, multiple in multiples.items() if multiple and part in trained}, part_of)


def parts_of(objective: Objective) -> dict[str, str]:
    """Name of each parameter of an objective -> image, backbone or head (`OptimConfig`)."""
    backbone = objective.model.mbsd
    image, poolers = ({id(p) for p in found} for found in (backbone.image_stem(), backbone.pooler_parameters()))
    of_backbone = {id(p) for p in backbone.parameters()} - poolers
    return {
        name: "image" if id(p) in image else "backbone" if id(p) in of_backbone else "head"
        for name, p in objective.named_parameters()
    }
