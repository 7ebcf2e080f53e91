"""Mathematics of diffusion: levels, schedules, predictions, guidance, samplers. No networks."""
