"""Classes of a data set, from whatever its label column holds."""

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import torch


if TYPE_CHECKING:
    import datasets

MISSING = -1  # as `datasets` writes it for a class that is not known


class Labels(NamedTuple):
    """
    The classes of the rows of a data set.

    Args:
        indices (`torch.Tensor` of shape `(M,)`): The class of each row; -1 for a row without one.
        names (`list[str]`): Names of the classes.
    """

    indices: torch.Tensor
    names: list[str]


def find_label_column(
    dataset: "datasets.Dataset | datasets.IterableDataset", wanted: str | None = None
) -> str | None:
    """
    Find the column of the classes.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): The data set.
        wanted (`str`, *optional*): The column to use; by default the only `ClassLabel`, or else one
            that is called `label`.

    Returns:
        `str` or `None`: Its name; None if there is none.

    Raises:
        ValueError: There is no such column, or there are several `ClassLabel`s, none of which is called
            `label`.
    """
    import datasets

    columns = list(dataset.features)
    if wanted is not None:
        if wanted not in columns:
            raise ValueError(f"`label_column` is {wanted!r}, but the data set has the columns {columns}.")
        return wanted
    names = [name for name in columns if isinstance(dataset.features[name], datasets.ClassLabel)]
    if len(names) > 1 and "label" not in names:
        raise ValueError(f"The data set has several label columns, {names}; name one with `label_column`.")
    if len(names) == 1:
        return names[0]
    return "label" if "label" in columns else None


def read_class_names(dataset: "datasets.IterableDataset", column: str | None) -> list[str] | None:
    """
    Read the names of the classes of a stream, which must be known before it is read.

    Args:
        dataset (`datasets.IterableDataset`): The stream.
        column (`str` or `None`): The column of the classes.

    Returns:
        `list[str]` or `None`: The names; None if the data set has no classes.

    Raises:
        ValueError: The column does not name its classes.
    """
    import datasets

    if column is None:
        return None
    feature = dataset.features[column]
    if not isinstance(feature, datasets.ClassLabel):
        raise ValueError(
            f"`label_column` {column!r} of a stream must be a ClassLabel, which names its classes, not"
            f" {feature}."
        )
    return feature.names


def read_labels(dataset: "datasets.Dataset", column: str) -> Labels:
    """
    Read the classes of all rows.

    A `ClassLabel` has its own names. Of strings, integers and booleans each distinct value is a
    class, in sorted order.

    Args:
        dataset (`datasets.Dataset`): The data set.
        column (`str`): The column of the classes.

    Returns:
        [`Labels`]: The classes.

    Raises:
        ValueError: A value is not a class.
    """
    import datasets

    values = dataset.with_format(None)[column][:]
    feature = dataset.features[column]
    if isinstance(feature, datasets.ClassLabel):
        names = feature.names
        indices: dict[Any, int] = {index: index for index in (MISSING, *range(len(names)))}
    else:
        classes = _list_classes(column, values)
        names = [str(value) for value in classes]
        indices = {value: index for index, value in enumerate(classes)}
    indices[None] = MISSING
    unknown = [value for value in values if value not in indices]
    if unknown:
        raise ValueError(
            f"`label_column` {column!r} holds {unknown[0]!r}, which is not one of its {len(names)} classes."
        )
    return Labels(torch.tensor([indices[value] for value in values], dtype=torch.int64), names)


def normalize_name(name: str) -> str:
    """
    Spell the name of a class in one way: `T-shirt/top` and `T - shirt / top` are the same.

    Args:
        name (`str`): The name.

    Returns:
        `str`: Its letters and digits, in lower case.
    """
    return re.sub(r"[\W_]", "", name).lower()


def match_class(name: str, names: list[str]) -> list[int]:
    """
    Find the classes that have a name, or else those of which it is another spelling.

    Args:
        name (`str`): The name.
        names (`list[str]`): The names of the classes.

    Returns:
        `list[int]`: Their places among the names.
    """
    exact = [place for place, each in enumerate(names) if each == name]
    spelling = normalize_name(name)
    return exact or [place for place, each in enumerate(names) if normalize_name(each) == spelling]


def _list_classes(column: str, values: list) -> list:
    """Return the distinct values in order, if they can be classes."""
    distinct = {value for value in values if _check_class(column, value)}
    try:
        return sorted(distinct)
    except TypeError:
        raise ValueError(f"`label_column` {column!r} mixes types, so its values are not classes.") from None


def _check_class(column: str, value: Any) -> bool:
    """Tell whether a value is given, and raise if it cannot be a class."""
    if value is None:
        return False
    if not isinstance(value, (str, int)):
        raise ValueError(
            f"`label_column` {column!r} holds {value!r}; a class is a string, an integer or a boolean."
        )
    return True
