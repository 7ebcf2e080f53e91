"""The U-Net denoiser."""
