"""Networks made for inference: the same numbers from the same weights, sooner.

`prepare_for_sampling` gives a copy of a U-Net or an autoencoder that is used as the original is. On a CPU its linear
layers and convolutions keep their weights in the layout in which oneDNN multiplies, feature maps lie channels last, and
what follows a product (a residual, a gate) is done while its result is still in the cache.
"""

from ldm.models.fast.networks import prepare_for_sampling as prepare_for_sampling
