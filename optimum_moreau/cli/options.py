"""Options that several verbs share: the model, the calibration text, and one flag per field of the config."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..config import BEST, CHOICES, PRESETS, SIZES, TARGETS, MoreauPrunerConfig
from ..errors import ConfigError
from ..registry import COMPENSATIONS, CRITERIA
from . import processes

if TYPE_CHECKING:
    from ..evaluation.records import Measurement


def _layers(text: str) -> tuple[int, int]:
    start, _, end = text.partition(":")
    if not (start.isdecimal() and end.isdecimal()):
        raise argparse.ArgumentTypeError(f"'{text}' is not START:END, e.g. 4:30, end excluded")
    return int(start), int(end)


def _ratio(text: str) -> float | tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not one share, e.g. 0.25, or one for each target: 0.25,0.3"
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"'{text}' is not yes or no")
    return text == "yes"


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _choice(field: str) -> str:
    return " | ".join(choice for choice in CHOICES[field] if choice is not None)


# field → (short alias, type, metavar, help); the flag is the field's name with hyphens. A type of bool is a switch.
Fields = Mapping[str, tuple[str | None, Callable[[str], Any], str | None, str]]

_FIELDS: Fields = {
    "criterion": (None, str, "NAME", f"how weights are scored: {', '.join(CRITERIA)}"),
    "pruning_ratio": ("--ratio", float, "SHARE", "share of the model's parameters to remove (default 0.2)"),
    "unit_ratio": (None, _ratio, "SHARE[,SHARE]", "instead: share of the units in scope; one, or one per target"),
    "target_parameters": (None, str, "SIZE", "instead: the most parameters left, e.g. 5.5B, 800M"),
    "target_bytes": (None, str, "SIZE", "instead: the most bytes left in the model's dtype, e.g. 12GiB, 12GB"),
    "attention_layers": (None, _layers, "START:END", "layers whose attention is in scope, end excluded"),
    "mlp_layers": (None, _layers, "START:END", "layers whose MLP is in scope"),
    "whole_layers": (None, _layers, "START:END", "layers that may go whole (default of all three: 4:30 of 32, scaled)"),
    "targets": (None, _names, "NAMES", f"what may be cut: {','.join(TARGETS)} (default attention,mlp)"),
    "layer_criterion": (None, str, "NAME", f"what a whole layer is worth: {_choice('layer_criterion')}"),
    "budget": (None, str, "NAME", f"how the ratio is spread over layers: {_choice('budget')}"),
    "protect": (None, float, "SHARE", "of each MLP's channels, the lowest-scored, that stay (default 0)"),
    "protect_outliers": (None, float, "M", "keep heads and channels that hand on more than M times their block's mean"),
    "aggregation": (None, str, "NAME", f"how the matrices of a unit combine: {_choice('aggregation')}"),
    "rho": (None, float, "X", "ρ of the Moreau envelope, absolute as in the paper; so are γ, and σ by default, then"),
    "step_size": (None, float, "X", "γ of Algorithm 1, absolute"),
    "relative_rho": (None, float, "SHARE", "instead of ρ: how far δ moves a matrix, as a share of its norm"),
    "step_ratio": (None, float, "SHARE", "γ/ρ, with the relative ρ"),
    "eta": (None, float, "X", "η, absolute group-sparsity threshold"),
    "eta_quantile": (None, float, "SHARE", "instead: the threshold as a quantile of the group norms"),
    "sigma": (None, float, "X", "σ of the noise"),
    "noise": (None, str, "NAME", f"noise of σ·|w| or of σ: {_choice('noise')}"),
    "steps": (None, int, "N", "T of Algorithm 1 (default 10); of lora (default 100)"),
    "noise_samples": (None, int, "N", "noise draws per step"),
    "passes": (None, int, "N", "noisy passes of smoothgrad"),
    "average_last": (None, int, "N", "score the mean of the last N iterates"),
    "alpha": (None, float, "X", "α of gblm: the gradient's weight beside the activations (default 100)"),
    "exponent": (None, float, "X", "a of ria, stochria, symwanda-relative: power of the inputs' norm (default 0.5)"),
    "norm_order": (None, float, "X", "p of symwanda-relative (default 2)"),
    "input_weight": (None, float, "X", "weight of the inputs in symwanda (default 1)"),
    "output_weight": (None, float, "X", "weight of the outputs in symwanda (default 1)"),
    "sample_share": (None, float, "SHARE", "β of stochria: share that row and column sums are over (default 0.1)"),
    "lora_rank": (None, int, "N", "r of the adapters of lora (default 8)"),
    "learning_rate": (None, float, "X", "of their training (default 1e-4)"),
    "decay": (None, float, "SHARE", "λ of lora: how much of the score before stays at each step (default 0.9)"),
    "damping": (None, float, "X", "of sparsegpt's Hessian, as a share of its mean diagonal (default 0.01)"),
    "pattern": (None, str, "NAME", "what goes: units (default), or single weights: unstructured, 2:4, 4:8, …"),
    "sparsity": (None, float, "SHARE", "of the weights in scope that become zero, unstructured (default 0.5)"),
    "mask_group": (None, str, "NAME", f"weights compared in an unstructured mask: {_choice('mask_group')}"),
    "refine": (None, str, "NAME", "improve a mask without training: dsnot | r2-dsnot"),
    "update": (None, bool, None, "adjust the weights that stay beside a mask (optimal brain surgeon)"),
    "permute": (None, bool, None, "put channels in an order for which an n:m mask keeps more score"),
    "feed_forward": (None, _yes_or_no, "yes|no", "what is masked reaches the layers behind before they are scored"),
    "channel_group": (None, str, "NAME", f"groups of the group threshold: {_choice('channel_group')}"),
    "reduction": (None, str, "NAME", f"what is averaged over the samples: {_choice('reduction')}"),
    "calibration_samples": ("--samples", int, "N", "windows of calibration text"),
    "sequence_length": ("--seq-len", int, "N", "tokens per window (default 128)"),
    "batch_size": (None, int, "N", "windows per forward pass (default: all, at most 10)"),
    "multiple_of": (None, int, "N", "keep channels as a multiple of N"),
    "engine": (None, str, "NAME", f"what must load the result: {_choice('engine')}"),
    "tensor_parallel": (None, int, "N", "devices over which that engine splits every layer"),
    "state_dtype": (None, str, "NAME", f"in which δ is kept: {_choice('state_dtype')} (default float32)"),
    "offload": (None, str, "NAME", "where δ is kept: cpu | disk (default: the device that scores)"),
    "compensation": (None, str, "NAME", f"how what stays is adjusted: {', '.join(COMPENSATIONS)}"),
    "compensation_samples": (None, int, "N", "windows of calibration text that this reads (default 128)"),
    "ridge": (None, float, "X", "λ of refit, as a share of the mean of diag XᵀX (default 0.01)"),
    "intercept": (None, bool, None, "fit a bias too; an own type holds it where the model's class cannot"),
    "rounds": (None, int, "N", "prune in N rounds, each scored as the one before left the model (default 1)"),
    "schedule": (None, str, "NAME", f"how fast the rounds reach the size: {_choice('schedule')} (default cubic)"),
    "seed": (None, int, "N", "of windows, noise and random scores (default 0)"),
    "export": (None, str, "NAME", f"class of the result: {_choice('export')}"),
    "uniform": (None, bool, None, "every layer in scope keeps the same number of heads and channels"),
    "fold_norms": (None, bool, None, "hidden channels: keep the norms' averages over the original width"),
    "released": (None, bool, None, "the published code's update, for comparison"),
}

_MASKS = ("pattern", "sparsity", "mask_group", "refine", "update", "permute", "feed_forward")
_AFTER_CUT = ("compensation", "compensation_samples", "ridge", "intercept", "rounds", "schedule")
# What a comparison of plans leaves to the user: not what it varies itself, no masks, which have no plan, and nothing
# that comes after a cut, since it cuts nothing.
COMPARED: Fields = {
    field: flag
    for field, flag in _FIELDS.items()
    if field not in ("criterion", *SIZES, *_MASKS, *_AFTER_CUT, "seed", "engine", "tensor_parallel", "export")
}


def add_fields(group: argparse._ArgumentGroup, fields: Fields, prefix: str = "") -> None:
    """Adds one flag per field, each beginning with the prefix; what is not given is `None`."""
    for field, (alias, kind, metavar, text) in fields.items():
        names = [alias.removeprefix("--")] if alias else []
        flags = [f"--{prefix}{name}".replace("_", "-") for name in (*names, field)]
        dest = f"{prefix}{field}"
        if kind is bool:
            group.add_argument(*flags, dest=dest, action="store_true", default=None, help=text)
        else:
            group.add_argument(*flags, dest=dest, type=kind, metavar=metavar, help=text)


def given(args: argparse.Namespace, fields: Fields, prefix: str = "") -> dict[str, Any]:
    """The fields whose flags were given."""
    found = {field: getattr(args, f"{prefix}{field}") for field in fields}
    return {field: value for field, value in found.items() if value is not None}


def shares(flag: str, text: str) -> list[float]:
    """Reads `0.1,0.2`.

    Raises:
        ConfigError: names the flag.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{flag}: '{text}' is not a share, or several, e.g. 0.1,0.2") from None


def whole_numbers(flag: str, text: str) -> list[int]:
    """Reads `0,15,31`.

    Raises:
        ConfigError: names the flag.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{flag}: '{text}' is not a whole number, or several, e.g. 0,15,31") from None


def _in_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{field} {value}" for field, value in settings.items())


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds one flag per field of `MoreauPrunerConfig`."""
    group = parser.add_argument_group("what and how to prune")
    group.add_argument(
        "--preset",
        metavar="NAME",
        help=f"settings under the flags, and under a recipe: {' | '.join(PRESETS)} (default best: {_in_words(BEST)};"
        " of masks, and with --released, plain)",
    )
    add_fields(group, _FIELDS)


def settings_from(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `MoreauPrunerConfig` whose flags were given."""
    return given(args, _FIELDS)


def config_from(args: argparse.Namespace) -> MoreauPrunerConfig:
    """Makes the config of the flags that were given, over the preset.

    Raises:
        ConfigError: a value is out of its range or contradicts another.
    """
    return MoreauPrunerConfig.preset(args.preset or "best", **settings_from(args))


# What may change when a model is planned again from saved scores; the rest decided the scores.
_REPLANNED = (
    *SIZES,
    "budget",
    "protect",
    "protect_outliers",
    "multiple_of",
    "uniform",
    "engine",
    "tensor_parallel",
    "fold_norms",
    "export",
    "attention_layers",
    "mlp_layers",
    "whole_layers",
    "targets",
    "compensation",
    "compensation_samples",
    "ridge",
    "intercept",
)


def replanned(origin: Mapping[str, Any], args: argparse.Namespace) -> MoreauPrunerConfig:
    """Makes the config of a new plan from the config the scores were made with, and the flags that were given.

    Raises:
        ConfigError: a flag would have changed the scores, or the scores carry no config.
    """
    if not origin.get("config"):
        raise ConfigError(f"{args.from_scores}: carries no config; score the model again with `plan` or `prune`")
    if origin["config"].get("rounds", 1) > 1:
        raise ConfigError(f"{args.from_scores}: come from rounds that led to one size; score again for another")
    if args.preset:
        raise ConfigError("--preset: decides how to score, and these scores are made; leave it out")
    changed = settings_from(args)
    for field in changed:
        if field not in _REPLANNED:
            raise ConfigError(f"{field} decided the scores; leave it out, or score again without --from-scores")
    if any(size in changed for size in SIZES):
        changed = {**dict.fromkeys(SIZES), **changed}
    if "engine" in changed:  # what the last one made of the scope does not hold for another
        changed = {"attention_layers": None, "mlp_layers": None, "uniform": False, "export": "auto", **changed}
    if changed.get("uniform") or changed.get("engine", "transformers") != "transformers":
        changed = {"budget": "uniform", **changed}  # nobody asked for the scores' budget
    return MoreauPrunerConfig.from_dict({**origin["config"], **changed})


def add_model_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds the model, and how to load it; where it is not required, a recipe may hold it, and the dtype."""
    parser.add_argument("model", metavar="MODEL", nargs=None if required else "?", help="folder or Hub id of the model")
    group = add_loading_arguments(parser)
    group.add_argument("--revision", help="branch, tag or commit on the Hub")
    if not required:
        parser.set_defaults(dtype=None)


def add_loading_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds how to load a model."""
    group = parser.add_argument_group("loading")
    group.add_argument("--dtype", default="auto", help="auto (as saved) | float32 | bfloat16 | float16")
    group.add_argument("--device", help="cpu, cuda, cuda:1, …, or auto for all GPUs (default: cuda where there is one)")
    add_trust_argument(group)
    return group


def add_trust_argument(group: argparse._ActionsContainer) -> None:
    """Adds the one word that lets code run which a model's files name."""
    group.add_argument(
        "--trust-remote-code", action="store_true", help="run modeling code that lies beside the weights"
    )


def add_calibration_arguments(parser: argparse.ArgumentParser, *, scores: bool = True) -> None:
    """Adds the calibration text; where something is scored, also the folder that keeps steps."""
    group = parser.add_argument_group("calibration")
    group.add_argument(
        "--calibration", metavar="TEXT", help="text file, records (.jsonl …), or hub:id[:config[:split[:column]]]"
    )
    group.add_argument("--calibration-column", metavar="NAME", help="text column of records")
    if scores:
        group.add_argument("--checkpoint-dir", metavar="FOLDER", help="keep every Moreau step, to go on after a kill")


def calibration_from(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `MoreauPruner.plan` and `prune` that the flags give."""
    return {"calibration_column": args.calibration_column, "checkpoint_dir": args.checkpoint_dir}


def add_output_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds the folder to write."""
    parser.add_argument("-o", "--output", required=required, metavar="FOLDER", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that holds a model and nothing else")
    parser.add_argument("--evaluate", metavar="TEXT", help="measure the perplexity on a text, for the card")
    parser.add_argument("--card-template", metavar="FILE", help="of the model card (jinja2)")


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """Loads the model and tokenizer that the flags name; one of several processes loads them on a device of its own."""
    from ..loading import load_model, load_tokenizer

    device = processes.join(args.device)
    model = load_model(
        args.model,
        dtype=args.dtype,
        device=device,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
    )
    return model, load_tokenizer(args.model, revision=args.revision, trust_remote_code=args.trust_remote_code)


def perplexities(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """The perplexity of each stage, if any was measured."""
    found = {one.stage: one.value for one in measurements}
    return {"perplexity": found} if found else {}


def perplexity_line(result: Mapping[str, Any]) -> list[str]:
    """The same for a reader."""
    stages = ", ".join(f"{stage} {value:.4f}" for stage, value in result.get("perplexity", {}).items())
    return [f"perplexity  {stages}"] if stages else []
