"""What flows into the linear layers of a model, gathered one decoder layer at a time.

Of N samples, x a token's input to a linear layer and y its output, without bias:

    squares   A_j = (1/N) Σ_tokens x_j²      sums      S_j = (1/N) Σ_tokens x_j
    outputs   B_k = (1/N) Σ_tokens y_k²      products  Σ_tokens x xᵀ

Only the hidden states between two layers are kept, of all windows, and the statistics of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..distributed import add_up, is_distributed
from ..errors import NonFiniteError
from .hooks import first_non_finite
from .placement import forward_of, input_device
from .units import decoder_layers


@dataclass
class Inputs:
    """Statistics of one linear layer, in float32; what was not asked for is `None`.

    Attributes:
        samples: N.
        tokens: number of tokens, of all samples.
        squares: A, `(in,)`.
        sums: S, `(in,)`.
        outputs: B, `(out,)`.
        products: Σ x xᵀ, `(in, in)`.
    """

    samples: int
    tokens: int
    squares: Tensor | None = None
    sums: Tensor | None = None
    outputs: Tensor | None = None
    products: Tensor | None = None

    @property
    def variance(self) -> Tensor:
        """Of each input over the tokens, `(in,)`; needs squares and sums."""
        assert self.squares is not None and self.sums is not None
        share = self.samples / self.tokens
        return (self.squares * share - (self.sums * share).square()).clamp_(min=0)

    def reordered(self, columns: Tensor) -> Inputs:
        """The statistics of a layer whose inputs are in another order: where each comes from, int64 `(in,)`."""
        squares, sums = (None if one is None else one[columns] for one in (self.squares, self.sums))
        products = None if self.products is None else self.products[columns][:, columns]
        return replace(self, squares=squares, sums=sums, products=products)


WHAT = ("squares", "sums", "outputs", "products")


class LayerStream:
    """Yields the decoder layers in order, each with the hidden states that reach it.

    What the consumer does to a layer's weights while it holds it reaches the layers behind, if it asks for that
    (`StreamedLayer.pass_on`).

    Args:
        model: a causal language model in `scoring_mode`.
        batches: calibration windows, token ids `(windows, length)`, all of one length.
        samples: number of windows, of all processes.
        on_cpu: keep the hidden states of all windows in CPU memory, wherever the model computes.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Tensor], samples: int, *, on_cpu: bool = False):
        self._model, self._batches, self._samples, self._on_cpu = model, batches, samples, on_cpu
        self._layers = decoder_layers(model)

    @torch.no_grad()
    def __iter__(self) -> Iterator[StreamedLayer]:
        arguments = self._arguments()
        hidden = _Hidden(self._on_cpu)
        for i, batch in enumerate(self._batches):
            catch = self._layers[0].register_forward_pre_hook
            hidden.put(i, _caught(catch, partial(self._decode, batch))[0][0])  # (windows, length, hidden)
        for index, layer in enumerate(self._layers):
            streamed = StreamedLayer(index, layer, hidden, arguments[index], self._samples, self._blame)
            yield streamed
            streamed.pass_on()

    def logits(self, streamed: StreamedLayer) -> Iterator[Tensor]:
        """Yields, batch by batch, the model's logits `(windows, length, vocabulary)`, from the layer held now on."""
        for batch, hidden in zip(self._batches, streamed.hidden, strict=True):
            with _handing_on(self._layers[: streamed.index], hidden):
                logits = self._model(input_ids=batch.to(input_device(self._model)), use_cache=False).logits
            yield logits
            del logits  # not beside the next batch's

    def _arguments(self) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """What every layer is given besides the hidden states, e.g. its mask: of one window, which broadcasts."""
        found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append((args[1:], {name: value for name, value in kwargs.items() if name != "past_key_values"}))

        with ExitStack() as stack:
            for layer in self._layers:
                stack.callback(layer.register_forward_pre_hook(note, with_kwargs=True).remove)
            self._decode(self._batches[0][:1])
        return found

    def _blame(self) -> str:
        """Says where a NaN or infinity comes from."""

        def forward() -> None:
            for batch in self._batches:
                self._decode(batch)

        return first_non_finite(self._model, forward)

    def _decode(self, batch: Tensor) -> None:
        self._model.model(input_ids=batch.to(input_device(self._model)), use_cache=False)


@dataclass
class _Hidden:
    """The hidden states of all windows, batch by batch: where they are computed, or on the CPU meanwhile."""

    on_cpu: bool
    kept: list[Tensor] = field(default_factory=list)
    device: torch.device | None = None

    def __iter__(self) -> Iterator[Tensor]:
        for states in self.kept:
            yield states.to(self.device) if self.on_cpu else states

    def put(self, i: int, states: Tensor) -> None:
        self.device = self.device or states.device
        self.kept[i : i + 1] = [states.cpu() if self.on_cpu else states]


@contextmanager
def _handing_on(layers: Iterable[nn.Module], hidden: Tensor) -> Iterator[None]:
    """Within the block some layers compute nothing: whatever reaches them, they hand on these hidden states."""
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(forward_of(layer, lambda *args, **kwargs: hidden))
        yield


class _Caught(Exception):
    """The forward pass has come far enough."""


def _caught(register: Callable[..., Any], run: Callable[[], object]) -> tuple[Any, ...]:
    """What a hook is given besides its module, once a pass comes to it; the rest of the pass is not computed."""
    caught: list[tuple[Any, ...]] = []

    def catch(module: nn.Module, *given: Any) -> None:
        caught.append(given)
        raise _Caught

    with suppress(_Caught), ExitStack() as stack:
        stack.callback(register(catch).remove)
        run()
    return caught.pop()


@dataclass(eq=False)
class StreamedLayer:
    """A decoder layer and the hidden states that reach it.

    Attributes:
        index: of the layer.
        layer: the module.
    """

    index: int
    layer: nn.Module
    _hidden: _Hidden
    _arguments: tuple[Any, Any]
    _samples: int
    _blame: Callable[[], str]
    _passed: bool = False

    @property
    def hidden(self) -> Iterator[Tensor]:
        """The hidden states `(windows, length, hidden)` that reach it, batch by batch."""
        return iter(self._hidden)

    @property
    def windows(self) -> list[Tensor]:
        """The hidden states `(length, hidden)` of every window, where they are kept."""
        return [window for states in self._hidden.kept for window in states]

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the layer is given behind the hidden states, and by name; of one window, which broadcasts."""
        return self._arguments

    def gather(
        self, modules: Sequence[str], what: Collection[str], *, pass_on: bool = True, alike: bool = False
    ) -> Mapping[str, Inputs]:
        """Runs all windows through the layer and gathers the statistics of some of its linear layers.

        Args:
            modules: their names inside the layer, e.g. `mlp.up_proj`.
            what: of WHAT.
            alike: they read the same inputs, so that products are gathered once and shared.
            pass_on: what comes out is what reaches the next layer, so that one pass does; `False`: the layer is going
                to be changed, and `pass_on` is called afterwards.

        Raises:
            NonFiniteError: an input is NaN or infinite.
        """
        alone = [kind for kind in what if not (alike and kind == "products")]
        gathered = {name: _Gather(alone if i else what) for i, name in enumerate(modules)}
        with ExitStack() as stack:
            for name, one in gathered.items():
                stack.callback(self.layer.get_submodule(name).register_forward_hook(one).remove)
            self._run(keep=pass_on)
        self._passed |= pass_on
        found = {name: one.inputs(self._samples) for name, one in gathered.items()}
        if alike:
            products = found[modules[0]].products
            found = {name: replace(inputs, products=products) for name, inputs in found.items()}
        for name, inputs in found.items():
            for kind in what:
                if not torch.isfinite(getattr(inputs, kind)).all():
                    raise NonFiniteError(f"layers.{self.index}.{name}: its inputs are not finite; {self._blame()}")
        return found

    def outputs(self, modules: Sequence[str]) -> dict[str, list[Tensor]]:
        """Passes on, and returns what came out of some linear layers, batch by batch, where the hidden states are."""
        found: dict[str, list[Tensor]] = {name: [] for name in modules}

        def keep(kept: list[Tensor], module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            kept.append(output.cpu() if self._hidden.on_cpu else output)

        with ExitStack() as stack:
            for name, kept in found.items():
                stack.callback(self.layer.get_submodule(name).register_forward_hook(partial(keep, kept)).remove)
            self.pass_on()
        return found

    def flows(self, module: str, beside: str | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yields, batch by batch, what reaches the layer and flows into one linear layer; the rest is not computed.

        The third is what came out of another one `beside` it, on the way.
        """
        args, kwargs = self._arguments
        watch = self.layer.get_submodule(module).register_forward_pre_hook
        passed: list[Tensor] = []
        for hidden in self._hidden:
            with ExitStack() as stack, torch.no_grad():  # as a decorator it would keep what was yielded last
                if beside is not None:
                    other = self.layer.get_submodule(beside)
                    stack.callback(other.register_forward_hook(lambda _, given, output: passed.append(output)).remove)
                (given,) = _caught(watch, partial(self.layer, hidden, *args, **kwargs))
            yield hidden, given[0], passed.pop() if passed else None
            del hidden, given  # not beside the next batch's

    def computed(self) -> list[Tensor]:
        """What comes out of the layer as it is now, batch by batch."""
        args, kwargs = self._arguments
        found = []
        with torch.no_grad():
            for hidden in self._hidden:
                output = self.layer(hidden, *args, **kwargs)
                states = output[0] if isinstance(output, tuple) else output
                found.append(states.cpu() if self._hidden.on_cpu else states)
        return found

    def hand_on(self, states: Iterable[Tensor]) -> None:
        """What reaches the next layer is this, batch by batch, computed by the caller."""
        for i, one in enumerate(states):
            self._hidden.put(i, one)
        self._passed = True

    def take(self, other: StreamedLayer) -> None:
        """What reaches the next layer is what reaches it in the other stream."""
        self._hidden.kept[:] = other._hidden.kept
        self._passed = True

    def skip(self) -> None:
        """What reaches the next layer is what reached this one, as if it were not there."""
        self._passed = True

    def pass_on(self) -> None:
        """Computes what reaches the next layer, with the weights as they are now, unless `gather` did it."""
        if not self._passed:
            self._run(keep=True)
            self._passed = True

    @torch.no_grad()
    def _run(self, *, keep: bool) -> None:
        args, kwargs = self._arguments
        for i, hidden in enumerate(self._hidden):
            output = self.layer(hidden, *args, **kwargs)
            if keep:
                self._hidden.put(i, output[0] if isinstance(output, tuple) else output)


class _Gather:
    """Adds up one linear layer's statistics, batch by batch; float32, since squares overflow in float16."""

    def __init__(self, what: Collection[str]):
        self._what, self._tokens = what, 0
        self._sums: dict[str, Tensor] = {}

    def __call__(self, module: Any, args: tuple[Any, ...], output: Tensor) -> None:
        rows, columns = module.weight.shape
        shapes = {"outputs": (rows,), "products": (columns, columns)}
        x = args[0].reshape(-1, columns).float()  # (tokens, in)
        self._tokens += len(x)
        for kind in self._what:
            if kind not in self._sums:
                self._sums[kind] = x.new_zeros(shapes.get(kind, (columns,)))
            total = self._sums[kind]
            if kind == "products":
                total.addmm_(x.T, x)
            elif kind == "outputs":
                y = output if module.bias is None else output - module.bias
                total += y.reshape(-1, rows).float().square().sum(dim=0)
            else:
                total += (x.square() if kind == "squares" else x).sum(dim=0)

    def inputs(self, samples: int) -> Inputs:
        """The statistics, of all processes."""
        tokens = self._tokens
        if is_distributed():
            counted = torch.tensor(tokens, dtype=torch.int64, device=next(iter(self._sums.values())).device)
            add_up(counted, *self._sums.values())
            tokens = int(counted)
        means = {kind: total if kind == "products" else total / samples for kind, total in self._sums.items()}
        return Inputs(samples, tokens, **means)
