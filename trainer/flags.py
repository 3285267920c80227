"""Command-line flags generated from the settings' dataclasses, the single source of truth.

Every field of `DataConfig`, `ModelConfig` and `TrainConfig` is a flag of the same name: numbers and
strings as they are, tuples as comma-separated lists, bools as --x and --nox. Flags can be set in
flagfiles (`trainer.flagfiles`), where later ones override earlier ones; those on the command line
override all flagfiles, at any position. Nothing here imports TensorFlow, so that --help answers at
once.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence

from absl import flags

from data import files
from data.errors import UserError
from data.settings import SettingError
from trainer.config import Params
from trainer.flagfiles import INCLUDE, Argument, expand_flagfiles, quote

_HELP_FLAGS = {
    "help": "Show all flags with their help texts and exit; also -h and --helpfull.",
    "helpshort": "Show all flags with their defaults and exit.",
}
_HELP_ALIASES = {"h": "help", "helpfull": "help"}
_TRAITS = ("help", "is_path", "changes_predictions")
# Not recorded with the other settings, because it is different for each command.
UNRECORDED = ("mode",)


class ValueParser(flags.ArgumentParser):
    """Parses a text to a Python type, which `words` describe."""

    def __init__(self, kind: type, words: str):
        super().__init__()
        self._kind = kind
        self.syntactic_help = words

    def parse(self, argument):
        """Returns the value; raises a ValueError that says what was expected."""
        try:
            return self._kind(argument)
        except ValueError:
            raise ValueError(f"expected {self.syntactic_help}.") from None

    def flag_type(self) -> str:
        """Describes such a value in messages."""
        return self.syntactic_help


_SCALAR_PARSERS = {
    int: ValueParser(int, "a whole number"),
    float: ValueParser(float, "a number"),
    str: ValueParser(str, "a text"),
}


class TupleParser(flags.ArgumentParser):
    """Parses a comma-separated list to a tuple whose items have one type."""

    def __init__(self, item_parser: flags.ArgumentParser):
        super().__init__()
        self._item_parser = item_parser
        self.syntactic_help = f"a comma-separated list, each item {item_parser.flag_type()}"

    def parse(self, argument: str | tuple) -> tuple:
        """Converts `"1,2"` to `(1, 2)` and an empty text to an empty tuple."""
        if isinstance(argument, tuple):
            return argument
        items = [item.strip() for item in argument.split(",")] if argument.strip() else []
        try:
            return tuple(self._item_parser.parse(item) for item in items)
        except ValueError:
            raise ValueError(f"expected {self.syntactic_help}.") from None

    def flag_type(self) -> str:
        """Describes values of this kind in messages."""
        return self.syntactic_help


Values = dict[str, object]
Places = dict[str, str]


class CommandLine(typing.NamedTuple):
    """The content of a command line.

    Attributes:
        params: the settings.
        flag_values: all flags, including the program's own.
        places: the place of each flag that was given: FILE:LINE, or "" for the command line itself.
    """

    params: Params
    flag_values: flags.FlagValues
    places: Places

    @property
    def literal(self) -> frozenset[str]:
        """Names of the flags given on the command line itself."""
        return frozenset(name for name, place in self.places.items() if not place)

    @property
    def given(self) -> Values:
        """The settings that were given, on the command line or in flagfiles."""
        names = {setting.name for setting in list_settings()} & self.places.keys()
        return {name: self.flag_values[name].value for name in names}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of one of the dataclasses as a flag."""

    part: str
    name: str
    type: type
    default: object
    help: str
    is_path: bool
    changes_predictions: bool


def list_settings() -> Iterator[Setting]:
    """Yields the settings of all packages in the order of their dataclasses."""
    for part, config in _parts().items():
        types = typing.get_type_hints(config)
        for field in dataclasses.fields(config):
            traits = {name: field.metadata[name] for name in _TRAITS}
            yield Setting(part, field.name, types[field.name], field.default, **traits)


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
    """Builds `Params` from the settings' values by name; raises a ValueError for bad values."""
    parts = {}
    for part, config in _parts().items():
        names = [field.name for field in dataclasses.fields(config)]
        parts[part] = config(**{name: values[name] for name in names})
    return Params(**parts)


def settings_of(params: Params) -> Values:
    """Returns the settings' values by name, as for `make_params`."""
    return {
        setting.name: getattr(getattr(params, setting.part), setting.name)
        for setting in list_settings()
    }


def parse_flags(argv: Sequence[str], description: str = "") -> Params:
    """Parses a command line (`argv[0]` is the program's name) into `Params`.

    Exits with status 0 after --help and --helpshort, and with status 2 and a sentence on stderr if
    a flag is unknown or its value is invalid.
    """
    return parse_command_line(argv, description).params


def parse_flags_with(
    argv: Sequence[str], description: str, define_more: Callable[[flags.FlagValues], None]
) -> tuple[Params, flags.FlagValues]:
    """Does the same for a program with its own flags, which `define_more` defines."""
    return parse_command_line(argv, description, define_more)[:2]


def parse_command_line(
    argv: Sequence[str],
    description: str = "",
    define_more: Callable[[flags.FlagValues], None] = lambda flag_values: None,
    recall: Callable[[Values, Places], tuple[Values, Places]] | None = None,
) -> CommandLine:
    """Does the same and returns the whole content of the command line.

    Args:
        argv: the command line.
        description: purpose of the program.
        define_more: defines the program's own flags.
        recall: maps the settings' values, and the places of those that were given, to the values to
            use and the places that they are from.
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
    """Assigns the values in arguments to flags; later ones override earlier ones.

    Returns:
        The place of each flag that was given.

    Raises:
        ValueError: a flag is unknown, or its value is missing or has a wrong type; the message
            starts with the place if it is in a file.
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
            f"--{flag.name} has a line break in its value, which flagfiles cannot represent."
        )


def _split(
    argument: Argument, flag_values: flags.FlagValues, rest: Iterator[Argument]
) -> tuple[str, str]:
    """Splits an argument into a flag's name and its value, which may be the next argument."""
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
    """Prints on stderr what is wrong with the flags, and exits with status 2."""
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def require_flags(flag_values: flags.FlagValues, *names: str) -> None:
    """Exits with status 2 if one of these flags has no value."""
    for name in names:
        if not flag_values[name].value:
            refuse_flags(f"--{name} is not set.")


def exit_status(work: Callable[[], int]) -> int:
    """Runs the work of a command and returns its exit status.

    What is refused or fails becomes one sentence on stderr and status 1, and a setting that turns
    out to be invalid ends the program with status 2.
    """
    try:
        return work()
    except SettingError as error:
        refuse_flags(str(error))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        advice = "; free disk space and run the same command again" if full else ""
        place, reason = error.filename or "a file", error.strerror or error
        print(f"error: {place}: {reason}{advice}.", file=sys.stderr)
    return 1


def write_flagfile(params: Params, path: str) -> None:
    """Writes all settings except the mode as a flagfile, either completely or not at all."""
    lines = ["# All settings of the run in this folder, as a file for --flagfile."]
    lines += [
        format_flag(name, value)
        for name, value in settings_of(params).items()
        if name not in UNRECORDED
    ]
    with files.whole_file(path) as file:
        file.write("\n".join(lines) + "\n")


def format_help(description: str, short: bool = False, own: Iterable[flags.Flag] = ()) -> str:
    """Lists a program's own flags and then all settings, by package.

    Args:
        description: purpose of the program.
        short: whether to leave out the help texts.
        own: flags that are not settings.
    """
    parts = {"this program": [(flag.name, flag.default, flag.help) for flag in own]}
    for setting in list_settings():
        entry = setting.name, setting.default, setting.help
        parts.setdefault(setting.part, []).append(entry)
    lines = [description, "", "Flags (each can also be set in a file, with --flagfile=FILE):"]
    for part, entries in parts.items():
        lines += ["", f"{part}:"] if entries else []
        for name, default, meaning in entries:
            lines.append(f"  {format_flag(name, default)}")
            if not short:
                lines += textwrap.wrap(
                    meaning, 92, initial_indent=" " * 6, subsequent_indent=" " * 6
                )
    return "\n".join(lines)


def format_flag(name: str, value: object) -> str:
    """Formats a flag as in a flagfile."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={quote(_format_value(value))}"


class _FlagfileSerializer(flags.ArgumentSerializer):
    """Writes values so that the parsers above read them unchanged."""

    def serialize(self, value: object) -> str:
        return _format_value(value)


def _values(flag_values: flags.FlagValues) -> Values:
    """Returns the settings among the flags, by name."""
    values = {setting.name: flag_values[setting.name].value for setting in list_settings()}
    paths = {setting.name for setting in list_settings() if setting.is_path}
    return values | {name: files.expand(values[name]) for name in paths}


def _parts() -> dict[str, type]:
    """Returns the dataclass of each part of `Params`."""
    return typing.get_type_hints(Params)


def _make_parser(kind: type) -> flags.ArgumentParser:
    if typing.get_origin(kind) is tuple:
        return TupleParser(_SCALAR_PARSERS[typing.get_args(kind)[0]])
    return _SCALAR_PARSERS[kind]


def _format_value(value: object) -> str:
    return ",".join(str(item) for item in value) if isinstance(value, tuple) else str(value)
