"""Terms of the autoencoder's loss (Rombach et al. 2022, section 3.1 and appendix G), one file each."""
