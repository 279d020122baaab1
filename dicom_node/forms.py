"""YAML text -> a checked pydantic form. Every error names its line; unknown and doubled keys are refused."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from dicom_node.errors import ConfigError

_DEEPEST = 10

Form = TypeVar("Form", bound=BaseModel)


def parse_form(
    text: str, source: str, form: type[Form], *, needs: str, patterns: Mapping[str, str] | None = None
) -> Form:
    """Raises ConfigError with a line for each problem.

    source: how errors name the text. needs: what a document holds at least. patterns: a field's regular
    expression -> what to say where a value does not match it.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        raise ConfigError(f"{source}:{line}: is no YAML: {getattr(err, 'problem', err)}") from err
    except (ValueError, RecursionError) as err:
        # A date that is none (2026-13-45), a number too long, a thousand brackets.
        raise ConfigError(f"{source}:1: holds a value that YAML cannot read ({type(err).__name__}); quote it") from err
    if not isinstance(data, dict):
        raise ConfigError(f"{source}:1: is empty or no mapping; it needs at least {needs}")
    lines = dict(_lines(node))
    doubled = _doubled_keys(node)
    if doubled:
        raise ConfigError("\n".join(f"{source}:{line}: {key}: is given twice" for key, line in doubled))
    try:
        return _validated(form, data)
    except ValidationError as err:
        raise ConfigError("\n".join(_explain(err, lines, source, form, patterns or {}))) from err


def _validated(form: type[Form], data: dict[str, Any]) -> Form:
    """A strict form takes JSON's types: its lists may become tuples, its texts nothing but texts."""
    if form.model_config.get("strict"):
        return form.model_validate_json(json.dumps(data, default=str))
    return form.model_validate(data)


def _lines(
    node: yaml.Node | None, path: tuple[str, ...] = (), above: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[str, ...], int]]:
    """Every key path of a YAML document, as text, with its line number from 1."""
    # An alias may stand inside what it names; and no setting lies deeper than this.
    if id(node) in above or len(path) > _DEEPEST:
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _lines(value, here, (*above, id(node)))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, str(index)), value.start_mark.line + 1
            yield from _lines(value, (*path, str(index)), (*above, id(node)))


def _doubled_keys(node: yaml.Node | None, above: tuple[int, ...] = ()) -> list[tuple[str, int]]:
    """YAML lets the last of two equal keys win in silence; a node's settings must not."""
    found: list[tuple[str, int]] = []
    if id(node) in above or len(above) > _DEEPEST:
        return found
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                found.append((str(key.value), key.start_mark.line + 1))
            seen.add(key.value)
            found += _doubled_keys(value, above)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            found += _doubled_keys(value, above)
    return found


# What pydantic says in the words of Python, in those of YAML.
_WORDS = {
    "string_type": "must be text; put it in quotes",
    "tuple_type": "must be a list, like [a, b]",
    "dict_type": "must hold keys of its own; leave it out where there are none",
    "model_type": "must hold keys of its own; leave it out where there are none",
}


def _explain(
    err: ValidationError,
    lines: dict[tuple[str, ...], int],
    source: str,
    form: type[BaseModel],
    patterns: Mapping[str, str],
) -> Iterator[str]:
    for problem in err.errors():
        # "[key]" is how pydantic says that not the value but the key itself is wrong.
        loc = tuple(part for part in problem["loc"] if part != "[key]")
        path = tuple(str(part) for part in loc)
        line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), 1)
        key = ".".join(path) or "the document"
        if problem["type"] == "extra_forbidden":
            what = "unknown key" + did_you_mean(str(loc[-1]), _known_keys(form, loc[:-1]))
        elif problem["type"] == "missing":
            what = "is missing"
        else:
            # The value is not echoed: it may be a database password.
            what = _WORDS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
            what = patterns.get(problem.get("ctx", {}).get("pattern", ""), what)
        yield f"{source}:{line}: {key}: {what}"


def _known_keys(form: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """The keys allowed at `loc`, found by walking the models as the document was walked."""
    annotation: Any = form
    for part in loc:
        annotation = _inside(annotation, part)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [field.alias or name for name, field in annotation.model_fields.items()]
    return []


def _inside(annotation: Any, part: str | int) -> Any:
    """The type of element `part` of something of type `annotation`: a field, a dict's value, a tuple's item."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        return next((f.annotation for n, f in fields.items() if part in (n, f.alias)), None)
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return arguments[1]
    return arguments[0] if arguments else None


def did_you_mean(word: str, known: Any) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 30 else ""
