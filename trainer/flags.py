"""Command-line flags made from the settings' dataclasses, the one source of truth.

Every field of `DataConfig`, `ModelConfig` and `TrainConfig` is a flag of the same name: numbers and
strings as they are, tuples as comma lists, bools as --x and --nox. Flags can stand in flagfiles
(`trainer.flagfiles`), where later ones win; those on the command line win over all of these,
wherever they stand. Nothing here imports TensorFlow, so that --help answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence

from absl import flags

from data import files
from trainer.config import Params
from trainer.flagfiles import INCLUDE, Argument, expand_flagfiles, quote

_HELP_FLAGS = {
    "help": "Show all flags with their meaning and leave; also -h and --helpfull.",
    "helpshort": "Show all flags with their defaults and leave.",
}
_HELP_ALIASES = {"h": "help", "helpfull": "help"}
_TRAITS = ("help", "is_path", "changes_predictions")
# The verb of a command, which no record of settings repeats.
UNRECORDED = ("mode",)


class ValueParser(flags.ArgumentParser):
    """Parses a text by a Python type, which `words` call by its name."""

    def __init__(self, kind: type, words: str):
        super().__init__()
        self._kind = kind
        self.syntactic_help = words

    def parse(self, argument):
        """The value; raises a ValueError that says what was expected."""
        try:
            return self._kind(argument)
        except ValueError:
            raise ValueError(f"expected {self.syntactic_help}.") from None

    def flag_type(self) -> str:
        """What messages call such a value."""
        return self.syntactic_help


_SCALAR_PARSERS = {
    int: ValueParser(int, "a whole number"),
    float: ValueParser(float, "a number"),
    str: ValueParser(str, "a text"),
}


class TupleParser(flags.ArgumentParser):
    """Parses a comma list into a tuple whose items all have one type."""

    def __init__(self, item_parser: flags.ArgumentParser):
        super().__init__()
        self._item_parser = item_parser
        self.syntactic_help = f"a comma list, each item {item_parser.flag_type()}"

    def parse(self, argument: str | tuple) -> tuple:
        """Turns `"1,2"` into `(1, 2)` and an empty text into an empty tuple."""
        if isinstance(argument, tuple):
            return argument
        items = [item.strip() for item in argument.split(",")] if argument.strip() else []
        try:
            return tuple(self._item_parser.parse(item) for item in items)
        except ValueError:
            raise ValueError(f"expected {self.syntactic_help}.") from None

    def flag_type(self) -> str:
        """What messages call values of this kind."""
        return self.syntactic_help


Values = dict[str, object]
Places = dict[str, str]


class CommandLine(typing.NamedTuple):
    """What a command line says.

    Attributes:
        params: the settings.
        flag_values: all flags, a program's own among them.
        places: where each flag that was given stands: FILE:LINE, or "" for the command line itself.
    """

    params: Params
    flag_values: flags.FlagValues
    places: Places

    @property
    def literal(self) -> frozenset[str]:
        """Names of the flags that stand on the command line itself."""
        return frozenset(name for name, place in self.places.items() if not place)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of one of the dataclasses, seen as a flag."""

    room: str
    name: str
    type: type
    default: object
    help: str
    is_path: bool
    changes_predictions: bool


def list_settings() -> Iterator[Setting]:
    """Yields the settings of all rooms in the order of their dataclasses."""
    for room, config in _rooms().items():
        types = typing.get_type_hints(config)
        for field in dataclasses.fields(config):
            traits = {name: field.metadata[name] for name in _TRAITS}
            yield Setting(room, field.name, types[field.name], field.default, **traits)


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines a flag for every setting."""
    for setting in list_settings():
        if setting.type is bool:
            flags.DEFINE_boolean(
                setting.name, setting.default, setting.help, flag_values=flag_values
            )
        else:
            flags.DEFINE(
                _make_parser(setting.type),
                setting.name,
                setting.default,
                setting.help,
                flag_values=flag_values,
                serializer=_FlagfileSerializer(),
            )


def params_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> Params:
    """Builds `Params` from parsed flags; raises the dataclasses' ValueError for a bad setting."""
    return make_params(_values(flag_values))


def make_params(values: Values) -> Params:
    """Builds `Params` from the settings' values by name; raises a ValueError for a bad one."""
    rooms = {}
    for room, config in _rooms().items():
        names = [field.name for field in dataclasses.fields(config)]
        rooms[room] = config(**{name: values[name] for name in names})
    return Params(**rooms)


def settings_of(params: Params) -> Values:
    """The settings' values by name, as `make_params` takes them."""
    return {
        setting.name: getattr(getattr(params, setting.room), setting.name)
        for setting in list_settings()
    }


def parse_flags(argv: Sequence[str], description: str = "") -> Params:
    """Parses a command line (`argv[0]` is the program's name) into `Params`.

    Exits with status 0 after --help and --helpshort, and with status 2 and one sentence on stderr
    when a flag is unknown or its value cannot be used.
    """
    return parse_command_line(argv, description).params


def parse_flags_with(
    argv: Sequence[str], description: str, define_more: Callable[[flags.FlagValues], None]
) -> tuple[Params, flags.FlagValues]:
    """The same for a program with flags of its own, which `define_more` defines."""
    return parse_command_line(argv, description, define_more)[:2]


def parse_command_line(
    argv: Sequence[str],
    description: str = "",
    define_more: Callable[[flags.FlagValues], None] = lambda flag_values: None,
    recall: Callable[[Values, Places], tuple[Values, Places]] | None = None,
) -> CommandLine:
    """The same with all that a command line says.

    Args:
        argv: the command line.
        description: what the program is for.
        define_more: defines flags of the program's own.
        recall: of the settings' values and the places of those that were given it makes other
            values, and the places that it has them from.
    """
    flag_values = flags.FlagValues()
    define_flags(flag_values)
    settings = set(flag_values)
    define_more(flag_values)
    own = [flag_values[name] for name in flag_values if name not in settings]
    for name, meaning in _HELP_FLAGS.items():
        flags.DEFINE_boolean(name, False, meaning, flag_values=flag_values)
    try:
        places = assign_flags(flag_values, expand_flagfiles(list(argv)[1:]))
        if flag_values["help"].value or flag_values["helpshort"].value:
            print(format_help(description, short=not flag_values["help"].value, own=own))
            raise SystemExit(0)
    except ValueError as error:
        refuse_flags(str(error))
    values, recalled = _values(flag_values), {}
    if recall:
        values, recalled = recall(values, places)
    try:
        return CommandLine(make_params(values), flag_values, places)
    except ValueError as error:
        named = re.match(r"--(\w+)=", str(error))
        place = (recalled | places).get(named[1], "") if named else ""
        refuse_flags(f"{place}: {error}" if place else str(error))


def assign_flags(flag_values: flags.FlagValues, arguments: Iterable[Argument]) -> dict[str, str]:
    """Gives flags the values that arguments name, later ones in place of earlier ones.

    Returns:
        The place of each flag that was named.

    Raises:
        ValueError: a flag is unknown, or its value missing or not of its kind; the message begins
            with the place, if it is in a file.
    """
    places = {}
    rest = iter(arguments)
    for argument in rest:
        try:
            name, value = _split(argument, flag_values, rest)
            _check_text(flag_values[name], value)
            flag_values[name].parse(value)
        except (flags.Error, ValueError) as error:
            where = f"{argument.place}: " if argument.place else ""
            raise ValueError(where + str(error).removeprefix("flag ")) from None
        places[name] = argument.place
    flag_values.mark_as_parsed()
    return places


def _check_text(flag: flags.Flag, value: str) -> None:
    if flag.boolean and value.lower() not in ("true", "t", "1", "false", "f", "0"):
        raise ValueError(f"--{flag.name}={value}: expected true or false.")
    if "\n" in value:
        raise ValueError(
            f"--{flag.name} has a line break in its value, which no flagfile can hold."
        )


def _split(
    argument: Argument, flag_values: flags.FlagValues, rest: Iterator[Argument]
) -> tuple[str, str]:
    """Name of a flag and its value, which may be the next argument."""
    if not argument.text.startswith("-"):
        raise ValueError(f"{argument.text!r} is not a flag: flags look like --name=value.")
    name, equals, value = argument.text.lstrip("-").partition("=")
    name = _HELP_ALIASES.get(name, name)
    if name not in flag_values:
        negated = name.removeprefix("no")
        if not equals and negated in flag_values and flag_values[negated].boolean:
            return negated, "false"
        close = difflib.get_close_matches(name, [*flag_values, INCLUDE], 1)
        hint = f"did you mean --{close[0]}?" if close else "--helpshort lists all of them."
        raise ValueError(f"there is no flag --{name}; {hint}")
    if not equals and flag_values[name].boolean:
        return name, "true"
    if not equals:
        following = next(rest, None)
        if following is None or argument.place:
            raise ValueError(f"--{name} has no value: flags look like --name=value.")
        value = following.text
    return name, value


def refuse_flags(sentence: str) -> typing.NoReturn:
    """Says on stderr what is wrong with the flags and exits with status 2."""
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def write_flagfile(params: Params, path: str) -> None:
    """Writes every setting but the mode as a flagfile that gives the same, or writes nothing."""
    lines = ["# All settings of the run in this folder; --flagfile takes this file."]
    lines += [
        format_flag(name, value)
        for name, value in settings_of(params).items()
        if name not in UNRECORDED
    ]
    with files.whole_file(path) as file:
        file.write("\n".join(lines) + "\n")


def format_help(description: str, short: bool = False, own: Iterable[flags.Flag] = ()) -> str:
    """Lists a program's own flags and then all settings, room by room.

    Args:
        description: what the program is for.
        short: leaves the flags' meaning out.
        own: flags that are no settings.
    """
    rooms = {"this program": [(flag.name, flag.default, flag.help) for flag in own]}
    for setting in list_settings():
        entry = setting.name, setting.default, setting.help
        rooms.setdefault(setting.room, []).append(entry)
    lines = [description, "", "Flags (each can stand in a file given by --flagfile=FILE):"]
    for room, entries in rooms.items():
        lines += ["", f"{room}:"] if entries else []
        for name, default, meaning in entries:
            lines.append(f"  {format_flag(name, default)}")
            if not short:
                lines += textwrap.wrap(
                    meaning, 92, initial_indent=" " * 6, subsequent_indent=" " * 6
                )
    return "\n".join(lines)


def format_flag(name: str, value: object) -> str:
    """A flag as it stands in a flagfile."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={quote(_format_value(value))}"


class _FlagfileSerializer(flags.ArgumentSerializer):
    """Writes values so that the parsers above read the same values again."""

    def serialize(self, value: object) -> str:
        return _format_value(value)


def _values(flag_values: flags.FlagValues) -> Values:
    """The settings among the flags, by name."""
    values = {setting.name: flag_values[setting.name].value for setting in list_settings()}
    paths = {setting.name for setting in list_settings() if setting.is_path}
    return values | {name: files.expand(values[name]) for name in paths}


def _rooms() -> dict[str, type]:
    """The dataclass of each part of `Params`."""
    return typing.get_type_hints(Params)


def _make_parser(kind: type) -> flags.ArgumentParser:
    if typing.get_origin(kind) is tuple:
        return TupleParser(_SCALAR_PARSERS[typing.get_args(kind)[0]])
    return _SCALAR_PARSERS[kind]


def _format_value(value: object) -> str:
    return ",".join(str(item) for item in value) if isinstance(value, tuple) else str(value)
