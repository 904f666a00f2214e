"""What `plan --dry-run` and `prune --dry-run` print: sizes before and after, or zeros; memory and time."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..config import MoreauPrunerConfig
from ..pipeline import sizes

if TYPE_CHECKING:
    from ..models.units import ModelShape
    from ..planning import PruningPlan


def foresee(args: argparse.Namespace, given: MoreauPrunerConfig) -> dict[str, Any]:
    """Works from config.json alone."""
    from ..data.sources import check_there
    from ..data.windows import check_positions, reading_bytes
    from ..loading import check_device, load_skeleton
    from ..models.units import model_shape
    from ..scoring.scores import needs_text

    skeleton = load_skeleton(
        args.model, dtype=args.dtype, revision=args.revision, trust_remote_code=args.trust_remote_code
    )
    shape = model_shape(skeleton)
    config = given.resolve(skeleton.config)
    if needs_text(config) or config.compensation.fits:
        check_positions(skeleton.config, config.sequence_length)
        check_there(args.calibration)
    device = check_device(None if args.device == "auto" else args.device).type
    text = reading_bytes(args.calibration) if needs_text(config) or config.compensation.fits else 0
    of_kind = _foresee_zeros if config.masks else _foresee_cut
    return of_kind(skeleton, shape, config, device, text)


def _foresee_cut(
    skeleton: Any, shape: ModelShape, config: MoreauPrunerConfig, device: str, text: int
) -> dict[str, Any]:
    """Of units that go: sizes before and after."""
    from ..compensation.biases import shape_to_count
    from ..planning import contributions, expected_plan, removed_parameters
    from ..saving.summary import layer_shapes
    from ..scoring.scores import needs_text
    from ..surgery.export import check_reachable, decide_export

    counted = shape_to_count(skeleton, shape, config)
    check_reachable(skeleton.config, shape, counted, config)
    sizes.check_shape(counted, config)
    plan = expected_plan(counted, config)
    plan = replace(plan, contributions=contributions(plan, shape))
    export = decide_export(skeleton.config, shape, plan, config.export)
    left = counted.parameters - removed_parameters(plan, counted)
    before, after = layer_shapes(skeleton.config, plan)
    per_token = [
        sum(2 * layer["kv_heads"] * layer["head_dim"] * skeleton.dtype.itemsize for layer in layers if layer)
        for layers in (before, after)
    ]
    return {
        "parameters_before": shape.parameters,
        "parameters_after": left,
        "ratio_achieved": 1 - left / shape.parameters,
        "dtype": str(skeleton.dtype).removeprefix("torch."),
        "bytes_before": shape.bytes,
        "bytes_after": round(left * shape.bytes / shape.parameters),
        "kv_bytes_per_token_before": per_token[0],
        "kv_bytes_per_token_after": per_token[1],
        "hidden_before": skeleton.config.hidden_size,
        "hidden_after": len(plan.hidden.kept) if plan.hidden else skeleton.config.hidden_size,
        "layers_before": before,
        "layers_after": after,
        "contributions": dict(plan.contributions),
        "adjustments": [*plan.adjustments, *export.words],
        "export": export.model_type,
        "budget": config.budget.name,
        "calibration_windows": config.calibration_samples if needs_text(config) else 0,
        "scoring": _scoring(skeleton, shape, config, device, text),
        "compensation": _compensation(skeleton, shape, plan, config, device),
    }


def _foresee_zeros(
    skeleton: Any, shape: ModelShape, config: MoreauPrunerConfig, device: str, text: int
) -> dict[str, Any]:
    """Of a mask: shapes and bytes stay."""
    from ..masks.scope import foresee_zeros
    from ..planning import whole_plan
    from ..surgery.export import check_loadable, decide_export

    foreseen = foresee_zeros(skeleton, shape, config)
    export = decide_export(skeleton.config, shape, whole_plan(shape), config.export)
    check_loadable(skeleton.config, shape, whole_plan(shape), export)
    return {
        "parameters": shape.parameters,
        "bytes": shape.bytes,
        "dtype": str(skeleton.dtype).removeprefix("torch."),
        "sparsity": vars(foreseen),
        "export": export.model_type,
        "scoring": _scoring(skeleton, shape, config, device, text),
    }


def _scoring(skeleton: Any, shape: ModelShape, config: MoreauPrunerConfig, device: str, text: int) -> dict[str, Any]:
    from ..estimate import estimate_scoring

    estimate = estimate_scoring(skeleton, shape, config, device, text)
    return {"criterion": config.decided_by, "device": device, **vars(estimate), "words": estimate.lines}


def _compensation(
    skeleton: Any, shape: ModelShape, plan: PruningPlan, config: MoreauPrunerConfig, device: str
) -> dict[str, Any]:
    """What it takes; empty where there is none."""
    from ..estimate import estimate_compensation

    estimate = estimate_compensation(skeleton, shape, plan, config, device)
    return {} if estimate is None else {"device": device, **vars(estimate), "words": estimate.lines}


def parts(result: dict[str, Any]) -> str:
    """`: layers 5 %, mlp 15 %` of the model, for more than one target."""
    given = result["contributions"]
    shares = [f"{kind} {100 * count / result['parameters_before']:.2f} %" for kind, count in given.items()]
    return f": {', '.join(shares)}" if len(shares) > 1 else ""


def show(result: dict[str, Any]) -> str:
    """The same for a reader."""
    from ..config.quantities import words_for_bytes as size

    if "sparsity" in result:
        return _show_zeros(result, size(result["bytes"]))
    cache = [size(result[f"kv_bytes_per_token_{when}"]) for when in ("before", "after")]
    lines = [
        f"settings    {_settings(result)}",
        f"parameters  {result['parameters_before']:,} → {result['parameters_after']:,}"
        f"  (−{100 * result['ratio_achieved']:.2f} %{parts(result)})",
        f"on disk     {size(result['bytes_before'])} → {size(result['bytes_after'])} ({result['dtype']})",
        f"KV cache    {cache[0]} → {cache[1]} per token",
        f"hidden      {result['hidden_before']} → {result['hidden_after']}",
        *_layers(result["layers_before"], result["layers_after"]),
        f"export      {result['export']}",
        *(f"note        {line}" for line in result["adjustments"]),
        *_even(result["budget"]),
        *result["scoring"]["words"],
        *result["compensation"].get("words", []),
    ]
    return "\n".join(lines)


def _settings(result: dict[str, Any]) -> str:
    """What decides which units go, and what makes up for them."""
    windows = f" on {result['calibration_windows']} windows" if result["calibration_windows"] else ""
    step = result["compensation"].get("step", "none")
    return f"criterion {result['scoring']['criterion']}{windows}, budget {result['budget']}, compensation {step}"


def _even(budget: str) -> list[str]:
    """What is not known before scoring."""
    if budget == "uniform":
        return []
    return [f"note        shapes of an even spread; by the scores, budget '{budget}' decides what each layer gives"]


def _show_zeros(result: dict[str, Any], size: str) -> str:
    zeros = result["sparsity"]
    about, spread = ("about ", "; their spread follows the scores") if zeros["by_scores"] else ("", "")
    lines = [
        f"zeros       {about}{zeros['zeros']:,} of {zeros['weights']:,} weights in {zeros['matrices']} matrices"
        f" ({100 * zeros['zeros'] / zeros['weights']:.2f} %; {100 * zeros['of_model']:.2f} % of the model's);"
        f" {zeros['pattern']}{spread}",
        f"parameters  {result['parameters']:,}, as before",
        f"on disk     {size} ({result['dtype']}), as before: zeros are stored",
        f"export      {result['export']}, shapes as before",
        *result["scoring"]["words"],
    ]
    return "\n".join(lines)


def _layers(before: list[Any], after: list[Any]) -> list[str]:
    """How many layers stay, and one line for each run of these that are alike."""
    stay = [i for i, new in enumerate(after) if new is not None]
    words = [_layer(before[i], after[i]) for i in stay]
    starts = [n for n, line in enumerate(words) if n == 0 or line != words[n - 1]]
    lines = []
    for start, end in zip(starts, [*starts[1:], len(words)], strict=True):
        label = f"{stay[start]}-{stay[end - 1]}" if end - start > 1 else f"{stay[start]}"
        lines.append(f"  {label:<10}{words[start]}")
    which = "; which of them go follows the scores" if len(stay) < len(before) else ""
    return [f"layers      {len(before)} → {len(stay)}{which}", *lines]


def _layer(old: dict[str, int], new: dict[str, int]) -> str:
    names = (("heads", "heads"), ("kv_heads", "KV heads"), ("channels", "channels"))
    return ", ".join(f"{old[key]} → {new[key]} {noun}" for key, noun in names)
