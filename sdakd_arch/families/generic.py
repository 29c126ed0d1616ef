"""Registered architectures without a family of their own: BasicSR's EDSR, MSRResNet, SwinIR, a user's network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from fractions import Fraction

from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from sdakd.compat import UserError, near
from sdakd_arch.families.base import FAMILIES, Family, narrowed


class Generic(Family):
    """What can be told of any architecture: by its constructor's arguments and by how its modules repeat."""

    def width(self, network: Mapping) -> int | None:
        return network.get('num_feat', network.get('embed_dim'))

    def example(self, kind: str) -> dict | None:
        """Options of an architecture with its defaults, for RGB images; None where these do not suffice."""
        cls = dict(iter(ARCH_REGISTRY)).get(kind)
        if cls is None or FAMILIES.get(kind, self).discriminator:
            return None
        required = [entry for entry in inspect.signature(cls).parameters.values() if entry.default is entry.empty]
        needed = {entry.name for entry in required if entry.kind is not entry.VAR_KEYWORD}
        return {'type': kind, **dict.fromkeys(sorted(needed), 3)} if needed <= {'num_in_ch', 'num_out_ch'} else None

    def narrow(self, network: Mapping, ratio: Fraction) -> dict:
        """Narrows ``num_feat``, or ``embed_dim`` where the numbers of attention heads divide it.

        Raises:
            UserError: The constructor has neither, or a fraction of a channel would be left.
        """
        kind = network.get('type')
        cls = dict(iter(ARCH_REGISTRY)).get(kind)
        if cls is None:
            raise UserError(f'no rule says how to narrow the architecture {kind!r}; {near(str(kind), FAMILIES)}.')
        parameters = inspect.signature(cls).parameters
        key = next((key for key in ('num_feat', 'embed_dim') if key in parameters), None)
        if key is None:
            raise UserError(
                f'no rule says how to narrow the architecture {kind!r}, whose constructor has neither num_feat nor '
                'embed_dim; write the channels of the narrow network without a width, or register a family for it.'
            )
        default = parameters[key].default
        channels = narrowed(network, key, None if default is parameters[key].empty else default, ratio)
        heads = network.get('num_heads', getattr(parameters.get('num_heads'), 'default', None)) or ()
        for number in (heads,) if isinstance(heads, int) else heads:
            if key == 'embed_dim' and channels % number:
                raise UserError(
                    f'embed_dim of {kind} would be {channels} at {ratio}, which its {number} attention heads do not '
                    'divide; take another width, or write embed_dim and num_heads of the narrow network.'
                )
        return dict(network) | {key: channels}

    def trunk(self, network: nn.Module) -> list[str] | None:
        """The steps of the container with the most parameters among those that repeat.

        A container (``Sequential``, ``ModuleList``) repeats where all its modules are blocks of one class, which are
        its steps, or where it has several activations, which are them then.
        """
        found: dict[str, list[str]] = {}
        sizes = {}
        for name, container in network.named_modules():
            if not isinstance(container, nn.Sequential | nn.ModuleList):
                continue
            children = dict(container.named_children())
            activations = [key for key, child in children.items() if _is_activation(child)]
            alike = len({type(child) for child in children.values()}) == 1 and any(
                next(child.children(), None) is not None for child in children.values()
            )
            steps = list(children) if alike else activations
            if len(steps) > 1:
                found[name] = [f'{name}.{key}' if name else key for key in steps]
                sizes[name] = sum(parameter.numel() for parameter in container.parameters())
        return found[max(found, key=sizes.__getitem__)] if found else None

    def blocks(self, network: nn.Module) -> list[str]:
        steps = self.trunk(network) or []
        return [step for step in steps if not _is_activation(network.get_submodule(step))]

    def multiple(self, network: nn.Module) -> int:
        """The largest window of its attention, in pixels."""
        windows = [getattr(module, 'window_size', 1) for module in network.modules()]
        return max(window for window in windows if isinstance(window, int))


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ == 'torch.nn.modules.activation'
