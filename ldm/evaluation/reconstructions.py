"""Encode and decode images: how close reconstructions are, and how the codebook is used."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldm.data.images import to_bytes, to_tensor
from ldm.errors import UserError
from ldm.evaluation.features import Features
from ldm.evaluation.fidelity import metrics
from ldm.evaluation.plan import FIDELITY, Plan
from ldm.evaluation.reading import FeatureReader, as_tensor
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.precision import require_finite
from ldm.processes import ProcessShare


class Reconstructions:
    """A reader that reconstructs the first `plan.samples` images from the posterior's mode and measures the results."""

    def __init__(self, plan: Plan, autoencoder: Autoencoder, features: Features | None, device: torch.device) -> None:
        self.count, self.autoencoder, self.device = plan.samples, autoencoder, device
        self.measures = metrics(name for name in FIDELITY if name in plan.metrics)
        self._values: dict[str, list[float]] = {name: [] for name in self.measures}
        rfid = features if "rfid" in plan.metrics else None
        self.features = None if rfid is None else FeatureReader(plan.samples, rfid)
        self._codebook = _Codebook(autoencoder) if "codebook" in plan.metrics else None

    @torch.inference_mode()
    def see(self, images: np.ndarray) -> None:
        """Reconstruct the next images, bytes (n, H, W, 3)."""
        latents = self.autoencoder.encode(to_tensor(images).to(self.device)).mode()
        copies = to_bytes(require_finite(self.autoencoder.decode(latents), "the autoencoder"))
        ours, theirs = as_tensor(copies).to(self.device), as_tensor(images).to(self.device)
        for name, measure in self.measures.items():
            self._values[name] += measure(ours, theirs).tolist()
        if self.features is not None:
            self.features.see(copies)
        if self._codebook is not None:
            self._codebook.see(latents)

    def results(self, share: ProcessShare) -> dict[str, float]:
        """Return means over all images with their standard errors, and the use of the codebook."""
        results: dict[str, float] = {}
        for name, values in self._values.items():
            whole = np.array(share.gather(values))
            results |= {name: float(whole.mean()), f"{name}_standard_error": float(whole.std() / len(whole) ** 0.5)}
        return results if self._codebook is None else results | self._codebook.results(share)


class _Codebook:
    """Counts how often each vector of a codebook is used."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        if not autoencoder.config.bottleneck.has_codebook:
            kind = autoencoder.config.kind
            raise UserError(f"an autoencoder of kind {kind} has no codebook: remove codebook from the metrics")
        self.autoencoder = autoencoder
        self._counts = torch.zeros(autoencoder.quantize.embedding.num_embeddings, dtype=torch.int64)

    def see(self, latents: Tensor) -> None:
        """Count the indices of scaled latents (B, C, h, w)."""
        indices = self.autoencoder.indices(latents).flatten().cpu()
        self._counts += torch.bincount(indices, minlength=len(self._counts))

    def results(self, share: ProcessShare) -> dict[str, float]:
        """Return the fraction of used vectors, and the perplexity: K if all K vectors are used equally often."""
        counts = torch.stack(share.gather([self._counts])).sum(0)
        perplexity = torch.special.entr(counts.double() / counts.sum()).sum().exp()
        return {"codebook_usage": (counts > 0).double().mean().item(), "codebook_perplexity": perplexity.item()}
