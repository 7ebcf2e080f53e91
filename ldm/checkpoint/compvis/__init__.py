"""Single files in the naming of the original latent-diffusion, which ComfyUI and the webui load as well."""

from ldm.checkpoint.compvis.files import SingleFile, read_config, read_single_file, write_single_file

__all__ = ["SingleFile", "read_config", "read_single_file", "write_single_file"]
