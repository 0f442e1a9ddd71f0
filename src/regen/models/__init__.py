"""Old names: the model_index.json of a pipeline that regen 0.1 saved refers to them."""

import sys

from regen.model import autoencoder
from regen.t2v import transformer

sys.modules |= {f"{__name__}.autoencoder": autoencoder, f"{__name__}.transformer": transformer}
