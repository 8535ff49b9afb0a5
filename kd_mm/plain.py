"""What a component is without kd_mm: the form that an export gives it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any


class Replaceable(ABC):
    """A type of a config that an export replaces by one of mmpretrain's.

    A project that extends kd_mm derives its own such types from this class.
    """

    @classmethod
    @abstractmethod
    def plain(cls, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config of what takes its place.

        Args:
            cfg: Config of this type. Left as it is.
        """
