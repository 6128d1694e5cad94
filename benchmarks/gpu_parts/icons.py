"""The icons of quality_data.py, on which the parts "compiled", "learning" and "equal_steps" train."""

from gpu_parts.context import Context


def icons(context: Context) -> dict[str, str] | None:
    """The argument of TrainingConfig that names them, a few drawn shapes for a try; None, and a row, without them."""
    if context.tiny:
        return {"dataset_name": "gpu_parts.reference:few_shapes"}
    folder = context.data / "icons"
    if folder.is_dir():
        return {"train_data_dir": str(folder)}
    context.row("training on the icons", None, note=f"{folder} is not there: see the head of benchmarks/gpu.py")
    return None
