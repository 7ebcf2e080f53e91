"""What is trained: autoencoder, denoiser, classifier."""
