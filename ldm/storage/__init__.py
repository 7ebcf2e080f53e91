"""Files of tensors and JSON: written atomically, read with checks; the fields of configuration files."""
