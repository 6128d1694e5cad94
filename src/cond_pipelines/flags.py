"""Settings as fields of a dataclass: each field declares its help, its range and what it needs to have an effect.

The command line, its help and all checks are made from these declarations. Nothing here imports torch, so that `--help`
and a typo are answered at once.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from copy import copy
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Setting = Field[object]
Resume = Literal["model", "course", "free"]


@dataclass(frozen=True)
class Bounds:
    """The numbers that a field may have; None: no such bound."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    finite: bool = False

    def check(self, name: str, value: float) -> None:
        """Raise ValueError, which names the flag, for a number outside."""
        if self.finite and not math.isfinite(value):
            raise ValueError(f"--{name} {value} must be a finite number")
        if self.at_least is not None and self.below is not None and not self.at_least <= value < self.below:
            raise ValueError(f"--{name} {value} must be at least {self.at_least} and less than {self.below}")
        if self.above is not None and not value > self.above:  # written so that nan fails too
            raise ValueError(f"--{name} {value} must be greater than {self.above}")
        if self.at_least is not None and not value >= self.at_least:
            words = "not be negative" if self.at_least == 0 else f"be at least {self.at_least}"
            raise ValueError(f"--{name} {value} must {words}")
        if self.below is not None and not value < self.below:
            raise ValueError(f"--{name} {value} must be less than {self.below}")
        if self.at_most is not None and not value <= self.at_most:
            raise ValueError(f"--{name} {value} must be at most {self.at_most:,}")


PIXELS = Bounds(at_least=1, at_most=16_384)  # a side of more: a batch of one image takes more than 3 GB as float32
POSITIVE = Bounds(above=0)
NOT_NEGATIVE = Bounds(at_least=0)
SEED = Bounds(at_least=0, at_most=2**32 - 1)  # numpy's
AT_LEAST_ONE = Bounds(at_least=1)
FINITE = Bounds(finite=True)
FRACTION = Bounds(at_least=0, below=1)


def flag(
    default: object,
    help: str,
    *,
    resume: Resume | None = None,
    by: Literal["value", "loaded"] = "value",
    needs: str | tuple[str, ...] = (),
    like_default: Callable[[Any], Collection[object]] = lambda config: (),
    bounds: Bounds = Bounds(),
    common: int = 0,
) -> Any:
    """A field of a configuration.

    Args:
        help: one line: a verb, the unit, and why the default is what it is.
        resume: what the setting is when a run is resumed: part of the "model" or of the "course" of training (a change
            is refused), or "free" (a change takes effect, and the run says so).
        by: "loaded" where what counts is what was loaded (weights, images, an adapter) and not how it was named.
        needs: conditions without which the setting has no effect; see `holds`.
        like_default: values that a saved configuration may hold in place of the default, of the whole configuration.
        bounds: of a number.
        common: its place in the first group of `--help`; 0: it stands in its own group.
    """
    metadata: dict[str, object] = {
        "help": help,
        "resume": resume,
        "by": by,
        "like_default": like_default,
        "common": common,
        "bounds": bounds,
        "needs": (needs,) if isinstance(needs, str) else needs,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def secret(setting: Any) -> Any:
    """A `flag` that is no part of the configuration's repr."""
    setting.repr = False
    return setting


class Grouped:
    """Base of a configuration made of groups, each a dataclass that checks itself.

    A field of a group is given, read and set by its own name too: no two groups have a field of the same name.

    Example:
        >>> @dataclass(init=False)
        ... class Config(Grouped):
        ...     data: DataArguments = field(default_factory=DataArguments)
        >>> Config(resolution=32) == Config(data=DataArguments(resolution=32))
        True
    """

    def __init__(self, **values: object):
        owners = _owners(type(self))
        for name in values:
            if name not in owners and name not in owners.values():
                raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {name!r}")
        for group, make in _groups(type(self)).items():
            own = {name: value for name, value in values.items() if owners.get(name) == group}
            known: Any = values.get(group, {})  # the group itself, or a dictionary, as `asdict` makes of it
            vars(self)[group] = make(**known | own) if isinstance(known, dict) else replace(known, **own)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check what concerns several groups."""

    def __getattr__(self, name: str) -> Any:
        group = vars(self).get(_owners(type(self)).get(name, name))
        if group is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(group, name)

    def __setattr__(self, name: str, value: object) -> None:
        group = _owners(type(self)).get(name)
        if group is None:
            object.__setattr__(self, name, value)
        else:
            setattr(vars(self)[group], name, value)

    def to_dict(self) -> dict[str, object]:
        """All fields of all groups by their own names; with them the same configuration is made again."""
        return {setting.name: copy(getattr(self, setting.name)) for setting in settings_of(type(self))}


def _groups(config: Any) -> dict[str, type[Any]]:
    """The groups of a configuration or its class, by name; none where it is flat."""
    made: dict[str, object] = {setting.name: setting.default_factory for setting in fields(config)}
    return {name: group for name, group in made.items() if isinstance(group, type) and is_dataclass(group)}


_OWNERS: dict[type, dict[str, str]] = {}  # class of a configuration: name of a field: name of its group


def _owners(config_type: type) -> dict[str, str]:
    if config_type not in _OWNERS:
        groups = _groups(config_type).items()
        _OWNERS[config_type] = {setting.name: name for name, group in groups for setting in fields(group)}
    return _OWNERS[config_type]


def settings_of(config: Any) -> "list[Setting]":
    """The fields of a configuration or its class: of all its groups, where it has groups."""
    return [setting for group in _groups(config).values() for setting in fields(group)] or list(fields(config))


def hints_of(config_type: type) -> dict[str, object]:
    """The types of `settings_of`, by name."""
    groups = _groups(config_type).values() or [config_type]
    return {name: hint for group in groups for name, hint in get_type_hints(group).items()}


def default_of(setting: "Setting") -> object:
    """The default of a field."""
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def kinds_of(hint: object) -> tuple[list[object], bool]:
    """(types, whether None is one of them) of a type hint, with the values of a Literal in place of it."""
    kinds: list[object] = []
    for part in get_args(hint) if get_origin(hint) is not list and get_origin(hint) is not Literal else (hint,):
        kinds += get_args(part) if get_origin(part) is Literal else [part]
    kinds = kinds or [hint]
    return [kind for kind in kinds if kind is not type(None)], type(None) in kinds


def shown(name: str, value: object) -> str:
    """A setting as it stands on a command line; "no --name" where nothing is given."""
    if value is None or value == []:
        return f"no --{name}"
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    if name.endswith("_token"):  # a secret, which an error or a log would keep
        return f"--{name}"
    return f"--{name} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}"


# ---------------------------------------------------------------------------------------------- types and ranges
def check_values(config: "DataclassInstance") -> None:
    """Raise ValueError, in one line, for a value of a wrong type, outside of its choices or of its bounds."""
    hints = hints_of(type(config))
    for setting in settings_of(config):
        name, value = setting.name, getattr(config, setting.name)
        if isinstance(value, Path):
            value = str(value)
            setattr(config, name, value)
        kinds, optional = kinds_of(hints[name])
        if value is None and optional:
            continue
        choices = [kind for kind in kinds if not isinstance(kind, type) and get_origin(kind) is None]
        if choices:
            if isinstance(value, bool) or value not in choices:
                raise ValueError(f"--{name} {value!r} is not one of {', '.join(map(str, choices))}")
        elif not any(_is_a(value, kind) for kind in kinds):
            hint = hints[name]
            wanted = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
            raise ValueError(f"--{name} {value!r} is not of type {wanted}")
        setting.metadata["bounds"].check(name, value)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):  # weights that are not numbers come of it
                raise ValueError(f"--{name} {number} must be a finite number")


def _is_a(value: object, kind: object) -> bool:
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(v, get_args(kind)[0]) for v in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(kind, type) and (isinstance(value, kind) or (kind is float and isinstance(value, int)))


# ------------------------------------------------------------------------------------------- what needs what
def holds(config: object, condition: str) -> bool:
    """Whether a condition on other settings holds.

    `a`: --a is given and on. `a=x,y`: it has one of these values. `!`: the opposite. ` | `: any of several.

    Example:
        >>> holds(config, "pretrained_vae_model_name_or_path | pretrained_model_name_or_path")
    """
    for part in condition.split(" | "):
        name, _, values = part.removeprefix("!").partition("=")
        value = getattr(config, name)
        if name == "conditioning" and ":" in str(value):  # a setting of somebody's own package
            value = "custom"
        if (str(value) in values.split(",") if values else bool(value)) != part.startswith("!"):
            return True
    return False


def check_needs(config: "DataclassInstance", given: Iterable[str] = ()) -> None:
    """Raise ValueError for a setting without effect: one that lacks what it needs.

    Args:
        given: names of settings that were given by hand: these count even where they have their default's value.
            Others count where they differ from the default, for a saved configuration holds all of them.
    """
    for name, condition in _unmet(config, settings_of(config), given):
        raise ValueError(_without_effect(config, name, condition))


def with_effect(config_type: "type[DataclassInstance]", values: dict[str, object]) -> dict[str, object]:
    """The values that have an effect together: saved and chosen ones may be more."""
    settings = settings_of(config_type)
    config = SimpleNamespace(**{setting.name: default_of(setting) for setting in settings} | values)
    idle = {name for name, _ in _unmet(config, settings, values)}
    return {name: value for name, value in values.items() if name not in idle}


def _unmet(config: object, settings: "Iterable[Setting]", given: Iterable[str] = ()) -> Iterator[tuple[str, str]]:
    """(name, the condition that does not hold) of each setting without effect."""
    for setting in settings:
        value = getattr(config, setting.name)
        is_default = value == default_of(setting) or value in setting.metadata["like_default"](config)
        if not value or (is_default and setting.name not in given):  # what is off has the effect that it says
            continue
        yield from ((setting.name, need) for need in setting.metadata["needs"] if not holds(config, need))


def _without_effect(config: object, name: str, condition: str) -> str:
    flag_ = shown(name, getattr(config, name))
    wanted, unwanted = [], []
    for part in condition.split(" | "):
        other, _, values = part.removeprefix("!").partition("=")
        if part.startswith("!"):
            unwanted.append(shown(other, getattr(config, other)))
        else:
            names = [value for value in values.split(",") if value not in ("", "None")]
            wanted.append(f"--{other}" + (f" {' or '.join(names)}" if names else ""))
    if wanted and unwanted:
        at_odds, missing = " and ".join(unwanted), " or ".join(wanted)
        return f"{flag_} has no effect with {at_odds} and without {missing}: change that, or leave --{name} out"
    if wanted:
        return f"{flag_} has no effect without {' or '.join(wanted)}: add that, or leave --{name} out"
    return f"{flag_} has no effect with {' and '.join(unwanted)}: leave one of them out"
