"""Copies of networks for inference: the same outputs from the same weights in less time.

`prepare_for_sampling` copies a U-Net or an autoencoder. On a CPU the copy packs the weights of its linear layers and
convolutions for oneDNN, keeps feature maps in channels-last layout, and fuses additions and gates into the layers
before them.
"""

from ldm.models.fast.networks import prepare_for_sampling as prepare_for_sampling
