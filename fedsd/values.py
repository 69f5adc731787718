"""How the texts among the settings are read, and which settings exclude each other."""

import difflib
from collections.abc import Collection, Iterable, Mapping

Value = bool | int | float | str
METHODS = ("lora", "spire", "soda", "zo-token")  # what a client can train


def split_list(text: str) -> tuple[str, ...]:
    """Return the parts of a comma-separated list, without blanks."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def nearest(name: str, known: Collection[str]) -> str:
    """Return the one of `known`, which is not empty, that is spelt most like `name`."""
    return difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)[0]


def strangers(names: Iterable[str], clients: Collection[str]) -> dict[str, str]:
    """Return {name: nearest client} of the names that none of `clients`, which is not empty, bears."""
    return {name: nearest(name, clients) for name in names if name not in clients}


def are_ranks(value: Value) -> bool:
    """Say whether a setting lists ranks."""
    parts = split_list(str(value))
    return bool(parts) and all(p.isdigit() and int(p) >= 1 for p in parts)


def are_span(value: Value) -> bool:
    """Say whether a setting is two whole numbers, the first below the second."""
    parts = split_list(str(value))
    return len(parts) == 2 and all(part.isdigit() for part in parts) and int(parts[0]) < int(parts[1])


def span_of(text: str) -> tuple[int, int]:
    """Return (500, 900) for "500,900", of which `are_span` is true."""
    low, high = split_list(text)
    return int(low), int(high)


def shares_by_name(text: str) -> dict[str, float]:
    """Return {"c1": 0.1} for "c1=0.1"; ValueError unless every part is a name, "=" and a share in (0, 1]."""
    shares = {}
    for part in split_list(text):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise ValueError(f"{part!r} is not a client, '=' and a share") from None
        if not (name.strip() and 0 < shares[name.strip()] <= 1):
            raise ValueError(f"{part!r} does not give a client a share in (0, 1]")
    return shares


def are_shares(value: Value) -> bool:
    """Say whether a setting lists shares by name, or nothing."""
    try:
        shares_by_name(str(value))
    except ValueError:
        return False
    return True


def methods_by_name(text: str) -> dict[str, str]:
    """Return {"c1": "soda"} for "c1=soda"; ValueError unless every part is a name, "=" and a method, each name once."""
    methods: dict[str, str] = {}
    for part in split_list(text):
        name, _, method = (piece.strip() for piece in part.partition("="))
        if not (name and method) or name in methods:
            raise ValueError(f"{part!r} is not a client, '=' and a method, each client once")
        methods[name] = method
    return methods


def are_methods(value: Value) -> bool:
    """Say whether a setting lists methods by name, or nothing."""
    try:
        methods_by_name(str(value))
    except ValueError:
        return False
    return True


def unknown_method(method: str) -> str:
    """Return what is wrong with the name of a method, with the nearest that there is, or ""."""
    if method in METHODS:
        return ""
    return f"{method!r} is no method; use one of {', '.join(METHODS)}. Did you mean {nearest(method, METHODS)!r}?"


def conflicts(flat: Mapping[str, Value]) -> list[str]:
    """Return what is wrong between settings that are each right by themselves."""
    found = []
    threshold, method = flat.get("cluster.threshold"), flat.get("cluster.method")
    if threshold and method != "agglomerative":
        found.append(
            f"cluster.threshold = {threshold} has no meaning with cluster.method = {method!r}; "
            'use "agglomerative", or threshold 0'
        )
    name, inside, participation = (flat.get(f"strategy.{key}") for key in ("name", "inside", "participation"))
    if participation != "none" and (name not in ("style-clustered", "everyone") or inside != "flexlora"):
        found.append(
            f"strategy.participation = {participation!r} weighs an exact mean of bounded rank; use it with "
            f'strategy.name = "style-clustered" or "everyone" and strategy.inside = "flexlora", '
            f"not {name!r} and {inside!r}"
        )
    of_clients = methods_by_name(str(flat.get("method.of-clients", "")))
    unknown = {name: why for name, method in of_clients.items() if (why := unknown_method(method))}
    found += [f"method.of-clients gives {name} a method that there is not: {why}" for name, why in unknown.items()]
    given = {"method.name": flat.get("method.name")}
    given |= {f"method.of-clients for {name}": method for name, method in of_clients.items()}
    faults = [fault for setting, method in given.items() for fault in _conflicts_of_arrays(flat, setting, method)]
    return found + faults


def _conflicts_of_arrays(flat: Mapping[str, Value], setting: str, method: Value | None) -> list[str]:
    """Return which settings compare or fold factors B A, where a method shares other numbers."""
    beside = {"spire.form": "projected", "spire.backbone": "full"} if method == "spire" else {}
    what = [f"{key} = {value!r}" for key, value in beside.items() if flat.get(key) == value]
    if not what and method not in ("soda", "zo-token"):
        return []
    wanted = {
        "strategy.name": ("style-clustered", "everyone", "fedavg", "local"), "strategy.inside": ("flexlora",),
        "strategy.across": ("flexlora",), "strategy.detect": (False,), "strategy.stack-cap": (0,),
    }  # fmt: skip
    return [
        f"{key} = {flat[key]!r} works on LoRA factors alone, and {setting} = {method!r}"
        f"{f' with {what[0]}' if what else ''} shares numbers that are averaged one by one; "
        f"use {' or '.join(repr(value) for value in usable)}"
        for key, usable in wanted.items()
        if key in flat and flat[key] not in usable
    ]
