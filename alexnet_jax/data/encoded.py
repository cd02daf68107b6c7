"""What all sources of encoded images share: how their bytes become squares."""

import abc

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data.decode import UnreadableImage, decoder
from alexnet_jax.data.protocol import Reader
from alexnet_jax.errors import UsageError


class Encoded(abc.ABC):
    """Adds the method `squares` of a `Source` to a class that reads encoded images."""

    @abc.abstractmethod
    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """Reads images `[n]`, encoded as in `data.formats`, and their labels, integers `[n]`.

        Args:
          indices: integers `[n]` in `0..num_examples-1`, in any order.

        Raises:
          UsageError: a file is gone or was cut since the source was opened; it names the file.
        """

    @abc.abstractmethod
    def describe(self, index: int) -> str:
        """See `Source.describe`."""

    def squares(self, config: ConfigDict) -> Reader:
        """See `Source.squares`."""
        decode = decoder(config)

        def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            encoded, labels = self.read(indices)
            try:
                return decode(encoded), labels
            except UnreadableImage as error:
                where = self.describe(int(indices[error.position]))
                raise UsageError(f"{where}: {error.reason}") from None

        return read
