"""YAML files of keys and values."""

from pathlib import Path

import yaml

from utils.errors import InputError


class _StrictLoader(yaml.SafeLoader):
    """Loader of plain values that rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = []  # not a set: a key may be a list, which the base class rejects
        for key, _ in node.value:
            if key.value in seen:
                problem = f"the key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, content: str) -> dict:
    """Return the mapping in a YAML file. Raises InputError, describing the expected `content`, if it holds none."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: this is not valid YAML: {getattr(error, 'problem', None) or error}") from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or an impossible date
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold keys and values: {content}")
    return values
