"""A work of counting: what a network has and costs. Nothing is computed with it."""

from dataclasses import asdict, dataclass

from justimage.cost import cost
from justimage.laboratory import Lab, Result, Talk, hashed
from justimage.transformer import Architecture


@dataclass(frozen=True)
class Counted:
    """Parameters in millions, multiply-adds of a forward pass in G, and the numbers of the architecture."""

    network: Architecture

    @property
    def group(self) -> str:
        return hashed("counted", asdict(self.network))

    @property
    def title(self) -> str:
        return f"counting, {self.network.width} wide"

    def identity(self, lab: Lab) -> str:
        return self.group

    def do(self, lab: Lab, talk: Talk) -> Result:
        found = cost(self.network)
        counts = {"parameters_m": found.parameters / 1e6, "gflops": found.multiply_adds / 1e9}
        return asdict(self.network) | counts | {"patch_dimension": found.patch_dimension}
