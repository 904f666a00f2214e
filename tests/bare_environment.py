"""An environment that holds transformers, torch, what these two require, and nothing else: links into this one."""

from importlib.metadata import distribution

from packaging.requirements import Requirement


def make_bare_environment(folder):
    """Fills a folder with links; a process started with `-S` and this as PYTHONPATH sees nothing else."""
    folder.mkdir()
    for name in sorted(required_by("transformers", "torch")):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link = folder / top
            if not link.exists():
                link.symlink_to(found.locate_file(top))
    return folder


def required_by(*names):
    """The names of all distributions that these need, themselves included, extras left out."""
    needed, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name.lower() in needed:
            continue
        needed.add(name.lower())
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return needed
