"""Write the pages of docs/ that are made from the program: `.venv/bin/python -m ci.docs`."""

from __future__ import annotations

from ci.docs.pages import PAGES, make_page, path_of


def main() -> None:
    for name in PAGES:
        path_of(name).write_text(make_page(name), "utf-8")


if __name__ == "__main__":
    main()
