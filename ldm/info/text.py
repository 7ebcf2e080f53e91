"""The report of `ldm info` as aligned text."""

from __future__ import annotations

from ldm.info.report import Report

NAMES = {
    "unet": "U-Net",
    "text": "text encoder",
    "text_2": "second text encoder",
    "classes": "class table",
    "spatial": "segmentation map encoder",
    "ema": "averages (EMA)",
}


def as_text(facts: Report) -> str:
    """Format a report as lines of aligned text."""
    lines = [f"{facts['target']}: a {facts['kind']}", "", *_table(facts["parameters"], facts["memory"]), ""]
    rows = [(name, value) for name, value in _rows(facts) if value]
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(lines + [f"{name:<{width}}  {value}" for name, value in rows])


def _table(parameters: Report, memory: Report) -> list[str]:
    rows = [("parameters", "", "float32", "bfloat16")]
    for name, count in parameters.items():
        if name == "total":
            rows.append((name, f"{count:,}", size(memory["float32"]), size(memory["bfloat16"])))
            continue
        total = count["total"]
        rows.append((f"  {NAMES.get(name, name)}", f"{total:,}", size(4 * total), size(2 * total)))
        rows += [(f"    {part}", f"{n:,}", "", "") for part, n in count.items() if part != "total"]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}".rstrip()
        for row in rows
    ]


def _rows(facts: Report) -> list[tuple[str, str]]:
    calls = {"unet": "per U-Net call", "encode": "to encode", "decode": "to decode"}
    flops = [f"{operations(count)} {calls[name]}" for name, count in facts.get("flops", {}).items()]
    memory = [
        f"{size(count)} for the {NAMES.get(stage, stage)}" for stage, count in facts["memory"]["training"].items()
    ]
    rows = [
        ("image", shape(facts.get("image"))),
        ("latents", shape(facts.get("latents")) + _scaling(facts.get("latent_statistics"))),
        ("context", shape(facts.get("context"))),
        ("FLOPs", ", ".join(flops) + " (batch of one; multiply and add count as two)" if flops else ""),
        ("to train", ", ".join(memory) + " (weights, gradients, Adam, EMA; without activations)" if memory else ""),
        ("predicts", _diffusion(facts.get("diffusion"))),
        ("generates", _generates(facts.get("generates"))),
        ("training", _trained(facts.get("training"))),
        *_measured(facts.get("measured")),
    ]
    return rows + [("note", note) for note in facts.get("notes", [])]


def _scaling(statistics: Report | None) -> str:
    if statistics is None:
        return ""
    if statistics["scaling_factor"] is None:
        return ", statistics not measured yet"
    shift = f", shift {number(statistics['shift_factor'])}" if statistics["shift_factor"] else ""
    return f", scaling factor {number(statistics['scaling_factor'])}{shift}"


def _diffusion(diffusion: Report | None) -> str:
    if diffusion is None:
        return ""
    schedule = diffusion["schedule"]
    words = [diffusion["prediction"], f"on a {schedule['kind']} schedule of {schedule['num_train_timesteps']} steps"]
    if "beta_start" in schedule:
        words.append(f"with beta {schedule['beta_start']:g} to {schedule['beta_end']:g}")
    if schedule["zero_terminal_snr"]:
        words.append("with zero terminal SNR")
    return " ".join(words)


def _generates(found: str | None) -> str:
    return f"no: {found}" if found not in (None, "yes") else found or ""


def _trained(training: Report | None) -> str:
    if training is None:
        return ""
    stage = NAMES.get(training["stage"], training["stage"])
    done = f"step {training['step']:,} of " if "step" in training else ""
    images = f"{training['batch_size']:,} images of {training['size']}x{training['size']}"
    rate = f"learning rate {training['learning_rate']:g}"
    return f"{stage}, {done}{training['max_steps']:,} steps of {images}, {rate}"


def _measured(measured: Report | None) -> list[tuple[str, str]]:
    if measured is None:
        return []
    written = "written" if measured["written"] else "not written: add --write"
    return [
        ("measured", f"{measured['images']:,} images of {measured['data']}"),
        ("  mean of z", number(measured["mean"])),
        ("  std of z", number(measured["std"])),
        ("  before", _scaling(measured["before"]).removeprefix(", ")),
        ("  after", f"{_scaling(measured['after']).removeprefix(', ')} ({written})"),
    ]


def shape(sides: list[int] | None) -> str:
    """Format a shape, such as 4x32x32."""
    return "" if sides is None else "x".join(map(str, sides))


def number(value: float | list[float] | None) -> str:
    """Format a number or several of them with six digits."""
    return " ".join(f"{part:.6g}" for part in value) if isinstance(value, list) else f"{value:.6g}"


def size(count: float) -> str:
    """Format bytes in the unit that leaves at most four digits before the point."""
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def operations(count: float) -> str:
    """Format operations in the unit that leaves at most four digits before the point."""
    return _scaled(count, 1000, ("", "k", "M", "G", "T", "P"))


def _scaled(count: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while count >= base and power < len(units) - 1:
        count, power = count / base, power + 1
    return f"{count:.{0 if power == 0 else 1}f} {units[power]}".rstrip()
