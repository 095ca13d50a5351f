"""How a stage is sampled, and how options override it.

The methods (sampler, spacing, guidance rule, threshold) and their options are those that are registered; nothing here
knows one by name. Registries are imported where they are used, so that presets and command lines need no JAX.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from imagen_jax import checks
from imagen_jax.checks import MAX_STEPS, Verbatim, plain, require
from imagen_jax.methods import Method, docstrings, make_flat, option, options_of


class Kind(NamedTuple):
    """A kind of methods: their registry, the class that all are of, and what an instance is called in messages."""

    registry: Mapping[str, type]
    base: type
    what: str


def kinds() -> dict[str, Kind]:
    """Return the kinds of methods by the field of `SamplingConfig` that names one."""
    from imagen_jax.diffusion import guidance, samplers, spacings, thresholds

    return {
        "sampler": Kind(samplers.SAMPLERS, samplers.Sampler, "a Sampler"),
        "spacing": Kind(spacings.SPACINGS, spacings.Spacing, "a Spacing"),
        "guidance": Kind(guidance.RULES, guidance.Rule, "a Rule"),
        "threshold": Kind(thresholds.THRESHOLDS, thresholds.Threshold, "a Threshold"),
    }


@dataclasses.dataclass(frozen=True, init=False)
class SamplingConfig:
    """How a stage is sampled. Every option can be overridden at sampling time.

    Besides the fields, the options of all registered methods are keywords and attributes, such as `eta`; see
    `flat_options`. None is the method's own default. An option that the chosen method does not use must stay None.
    sampler, spacing, guidance and threshold are names of registered methods, or instances.
    """

    sampler: Any = "ddim"
    """Method that goes from noise to image."""
    steps: int = option(64, (1, MAX_STEPS))
    """Steps of the sampler from noise to image."""
    schedule: str | None = None
    """Noise schedule; None: the one of training."""
    spacing: Any = "t"
    """Spacing of the noise levels: equal steps of time or of log-SNR, EDM's, or trailing on the thousand times of a
    discretely trained network."""
    guidance: Any = "cfg"
    """Guidance rule: classifier-free, adaptive projected, or CFG++ (with sampler ddim)."""
    guidance_scale: float = option(5.0, "[-1000, 1000]")
    """Weight of the caption; 1 is off. For cfg++ in (0, 1], never off."""
    guidance_min_logsnr: float | None = option(None, "[-1000, 1000]", needs="guidance")
    """Guide only at this log-SNR and above; elsewhere the scale is 1. None: no bound."""
    guidance_max_logsnr: float | None = option(None, "[-1000, 1000]", needs="guidance")
    """Guide only at this log-SNR and below; elsewhere the scale is 1. None: no bound."""
    guidance_low: float | None = option(None, "[-1000, 1000]", needs="guidance")
    """Scale of every other step; None: every step has guidance_scale."""
    guidance_low_start: int | None = option(None, (0, MAX_STEPS), needs="guidance")
    """Steps before guidance_low begins; None: 0."""
    guidance_rescale: float | None = option(None, "[0, 1]", needs="guidance")
    """Share of the guided estimate brought back to the contrast of the conditional one, in [0, 1]; None: 0."""
    threshold: Any = "dynamic"
    """How estimates are kept in range: scaled by a percentile of each image, clipped to [-1, 1], or not at all."""
    threshold_at: Literal["after", "before", "both"] = "after"
    """Threshold after guidance combines the estimates, before it, or both."""
    aug_level: float = 0.1
    """Super-resolution only: sigma of the noise added to the low-res image, from 0 to process.max_aug_level."""
    strength: float = option(1.0, "(0, 1]")
    """With an image: the time to start from, in (0, 1]; 1 starts from noise alone."""
    resample: int = option(1, (1, 1000))
    """With a mask: how many times each group of `jump` steps is run, so that the painted part fits the rest."""
    jump: int = option(1, (1, MAX_STEPS))
    """With a mask: steps in a group that `resample` repeats."""
    options: Any = ()
    """Options of methods that were given, as pairs of name and value; made from the keywords."""

    def __init__(self, *, options: Any = (), **values: Any):
        given = dict(options) | {name: values.pop(name) for name in set(values) - set(CORE)}
        check_names(given)
        for name, default in CORE.items():
            object.__setattr__(self, name, values.get(name, default))
        given = sorted((name, value) for name, value in given.items() if value is not None)
        object.__setattr__(self, "options", tuple(given))

    def __getattr__(self, name: str) -> Any:
        """Return the option of a method, None if it was not given."""
        if name.startswith("_") or name not in flat_options():
            raise AttributeError(f"SamplingConfig has no option {name!r}")
        return dict(self.options).get(name)

    @property
    def is_guided(self) -> bool:
        """Whether an estimate without the caption is computed too."""
        return self.guidance_scale != 1 or not getattr(self._method_class("guidance"), "is_off_at_one", True)

    @property
    def used(self) -> frozenset[str]:
        """Names of the options that the chosen methods have."""
        classes = [self._method_class(kind) for kind in kinds() if isinstance(getattr(self, kind), str)]
        return frozenset(name for cls in classes if cls is not None for name in options_of(cls))

    def method(self, kind: str, prefix: str = "") -> Any:
        """Return the sampler, spacing, rule or threshold with its options, which are checked.

        Args:
          kind: the field that names it, such as "sampler".
          prefix: of the names of options in messages.
        """
        self.check_chosen(kind, prefix)
        chosen = getattr(self, kind)
        if isinstance(chosen, str):
            return make_flat(kinds()[kind].registry[chosen], dict(self.options), prefix)
        return chosen

    def check_chosen(self, kind: str, prefix: str = "") -> None:
        """Raise a ValueError unless the field `kind` names a registered method or is one."""
        chosen, (registry, base, what) = getattr(self, kind), kinds()[kind]
        if not isinstance(chosen, base):
            is_name = isinstance(chosen, str) and chosen in registry
            fix = "" if isinstance(chosen, str) else f"or give {what}"
            require(is_name, f"{prefix}{kind}", f"be one of {', '.join(registry)}", chosen, fix)

    def _method_class(self, kind: str) -> Any:
        """The class or the instance that is chosen; None for an unknown name."""
        chosen, registry = getattr(self, kind), kinds()[kind].registry
        if isinstance(chosen, str):
            return registry[chosen] if chosen in registry else None
        return chosen

    def flat(self) -> dict[str, Any]:
        """Return the fields, and those options of methods that were given, as JSON-able values by their names.

        Raises:
          ValueError: a method is an instance of a class that is not registered.
        """
        values = {name: getattr(self, name) for name in CORE}
        for kind in [kind for kind, value in values.items() if isinstance(value, Method)]:
            method, registry = values[kind], kinds()[kind].registry
            values[kind] = registry.name_of(method)
            values |= {name: getattr(method, each.field) for name, each in options_of(type(method)).items()}
        return {name: plain(value) for name, value in (values | dict(self.options)).items()}


# Fields of SamplingConfig without `options`, and their defaults.
CORE = {field.name: field.default for field in dataclasses.fields(SamplingConfig) if field.name != "options"}
# Fields that say something only to stages with guidance.
GUIDED = tuple(f.name for f in dataclasses.fields(SamplingConfig) if f.metadata.get("needs") == "guidance")


class FlatOption(NamedTuple):
    """One option as `SamplingConfig`, `sample_cascade` and the command line have it."""

    name: str
    hint: Any  # its type; a Literal of the registered names for those that name a method
    default: Any  # in words for options of methods
    doc: str
    kind: str | None = None  # of its methods, such as "sampler"; None for fields of `SamplingConfig`
    users: tuple[str, ...] = ()  # names of the methods that have it

    @property
    def whose(self) -> str:
        """The beginning of its help: which methods have it; "" for fields of `SamplingConfig`."""
        if not self.users:
            return ""
        has_all = set(self.users) == set(kinds()[self.kind].registry)
        return f"every {self.kind}: " if has_all else f"{' and '.join(self.users)}: "


def flat_options() -> dict[str, FlatOption]:
    """Return all options of sampling: the fields of `SamplingConfig`, each method's options behind its kind.

    They follow from what is registered at the time of the call.

    Raises:
      ValueError: an option of a method has the name of a field, or of an option of another kind of methods.
    """
    docs, hints, all_kinds = docstrings(SamplingConfig), checks.hints(SamplingConfig), kinds()
    found = {}
    for name, default in CORE.items():
        registry = all_kinds[name].registry if name in all_kinds else None
        hint = hints[name] if registry is None else Literal[tuple(registry)]
        found[name] = FlatOption(name, hint, default, docs[name])
        by_option: dict[str, dict[str, Any]] = {}
        for method, cls in (registry or {}).items():
            for flat, each in options_of(cls).items():
                is_own = flat not in CORE and flat not in found
                require(is_own, f"option {flat} of {method}", "have a name of its own", flat, "give it one by flat")
                by_option.setdefault(flat, {})[method] = each
        for flat, users in by_option.items():
            defaults = {method: _words(each.default) for method, each in users.items()}
            values = set(defaults.values())
            words = values.pop() if len(values) == 1 else ", ".join(f"{v} for {m}" for m, v in defaults.items())
            first = next(iter(users.values()))
            found[flat] = FlatOption(flat, first.hint, words, first.doc, name, tuple(users))
    return found


def _words(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def check_names(names: Any) -> None:
    """Raise a ValueError for names that are no options of sampling."""
    unknown = sorted(set(names) - set(CORE))
    if unknown:
        known = flat_options()
        unknown = [name for name in unknown if name not in known]
        require(not unknown, "sampling options", f"be among {', '.join(known)}", Verbatim(", ".join(map(str, unknown))))


def override(sampling: SamplingConfig, options: Mapping[str, Any]) -> SamplingConfig:
    """Return `sampling` with `options` put over it; what only its former method used goes with that method."""
    options = {name: plain(value) for name, value in options.items()}
    changed = dataclasses.replace(sampling, **options)
    stale: dict[str, Any] = {}
    turned_off = "guidance_scale" in options and not changed.is_guided
    rule = changed._method_class("guidance") if "guidance" in options else None
    if turned_off or not getattr(rule, "is_off_at_one", True):
        stale |= dict.fromkeys(GUIDED)
    if turned_off or ("threshold" in options and getattr(changed._method_class("threshold"), "is_identity", False)):
        stale["threshold_at"] = "after"
    if turned_off:
        stale["guidance"] = "cfg"
    if options.get("resample") == 1:
        stale["jump"] = 1
    changed = dataclasses.replace(changed, **{n: v for n, v in stale.items() if n not in options})
    known, used, all_kinds = flat_options(), changed.used, kinds()
    chosen_anew = {kind for kind in all_kinds if kind in options or kind in stale}
    for name, _ in changed.options:
        needed = None
        if name in used:
            cls = all_kinds[known[name].kind].registry[getattr(changed, known[name].kind)]
            needed = options_of(cls)[name].needs
        is_unused = name not in used and known[name].kind in chosen_anew
        is_vain = needed in options and not options[needed]
        if name not in options and (is_unused or is_vain):
            changed = dataclasses.replace(changed, **{name: None})
    return changed
