"""The site holds results/ beside the pages of docs/, and links between the two folders lead somewhere there too."""

from pathlib import Path

from mkdocs.structure.files import File

RESULTS = Path(__file__).parent.parent / "results"


def on_files(files, config):
    """Adds every file of results/."""
    for file in sorted(file for file in RESULTS.rglob("*") if file.is_file()):
        files.append(File.generated(config, f"results/{file.relative_to(RESULTS)}", abs_src_path=str(file)))
    return files


def on_page_markdown(markdown, page, **_):
    """Turns links between docs/ and results/ into those of the site."""
    if page.file.src_uri.startswith("results/"):
        return markdown.replace("](../docs/", "](../")
    return markdown.replace("](../results/", "](results/")
