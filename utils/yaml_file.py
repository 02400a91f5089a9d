"""YAML files of keys and values."""

from pathlib import Path

import yaml

from utils.errors import InputError


class _StrictLoader(yaml.SafeLoader):
    """YAML's plain values only, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for position, (key, _) in enumerate(node.value):
            if key.value in keys[:position]:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, content: str) -> dict:
    """The keys and values of `path`. InputError when it is none such; it says that `content` is expected."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: this is not valid YAML: {getattr(error, 'problem', None) or error}") from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a date that does not exist
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold keys and values: {content}")
    return values
