"""Images through an autoencoder and back: how near they come, and how its codebook is used."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldm.data.images import to_bytes, to_tensor
from ldm.errors import UserError
from ldm.evaluation.features import Features
from ldm.evaluation.fidelity import Metric, metrics
from ldm.evaluation.plan import FIDELITY, Plan
from ldm.evaluation.reading import FeatureReader, as_tensor
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.processes import ProcessShare


class Reconstructions:
    """Measures of the first `plan.samples` images of the data as they come back from the posterior's mode."""

    def __init__(self, plan: Plan, autoencoder: Autoencoder, features: Features | None, device: torch.device) -> None:
        self.count, self.autoencoder, self.device = plan.samples, autoencoder, device
        self.measures: dict[str, Metric] = metrics(name for name in FIDELITY if name in plan.metrics)
        self._values: dict[str, list[float]] = {name: [] for name in self.measures}
        self._copies: FeatureReader | None = None
        if "rfid" in plan.metrics:
            assert features is not None
            self._copies = FeatureReader(plan.samples, features)
        self._codebook = _Codebook(autoencoder) if "codebook" in plan.metrics else None

    @torch.inference_mode()
    def see(self, images: np.ndarray) -> None:
        """Bytes (n, H, W, 3)."""
        latents = self.autoencoder.encode(to_tensor(images).to(self.device)).mode()
        copies = to_bytes(self.autoencoder.decode(latents))
        ours, theirs = as_tensor(copies).to(self.device), as_tensor(images).to(self.device)
        for name, measure in self.measures.items():
            self._values[name] += measure(ours, theirs).tolist()
        if self._copies is not None:
            self._copies.see(copies)
        if self._codebook is not None:
            self._codebook.see(latents)

    def results(self, share: ProcessShare) -> dict[str, float]:
        """Means over all processes' images with their standard errors, and the codebook's use."""
        results: dict[str, float] = {}
        for name, values in self._values.items():
            whole = np.array(share.gather(values))
            results |= {name: float(whole.mean()), f"{name}_standard_error": float(whole.std() / len(whole) ** 0.5)}
        return results if self._codebook is None else results | self._codebook.results(share)

    def features(self, share: ProcessShare) -> Tensor:
        """Of all processes' reconstructions, (N, D)."""
        assert self._copies is not None
        return self._copies.gathered(share)


class _Codebook:
    """How often each vector of a codebook is used."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        if not autoencoder.config.bottleneck.has_codebook:
            kind = autoencoder.config.kind
            raise UserError(f"an autoencoder of kind {kind} has no codebook: remove codebook from the metrics")
        self.autoencoder = autoencoder
        self._counts = torch.zeros(autoencoder.quantize.embedding.num_embeddings, dtype=torch.int64)

    def see(self, latents: Tensor) -> None:
        """Scaled latents (B, C, h, w)."""
        indices = self.autoencoder.indices(latents).flatten().cpu()
        self._counts += torch.bincount(indices, minlength=len(self._counts))

    def results(self, share: ProcessShare) -> dict[str, float]:
        """Share of the vectors used at least once, and exp of the entropy of their frequencies: K if used alike."""
        counts = torch.stack(share.gather([self._counts])).sum(0)
        perplexity = torch.special.entr(counts.double() / counts.sum()).sum().exp()
        return {"codebook_usage": (counts > 0).double().mean().item(), "codebook_perplexity": perplexity.item()}
