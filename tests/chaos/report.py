"""What the long proofs print: one row a promise."""


class Report:
    """Rows "promise | bound | measured"; seen with ``pytest -s``."""

    def __init__(self):
        self._rows = []

    def row(self, promise, bound, measured):
        self._rows.append(f"| {promise} | {bound} | {measured} |")
        print(f"\n{self._rows[-1]}", flush=True)

    def end(self):
        if self._rows:
            print("\n| promise | bound | measured |\n|---|---|---|", *self._rows, sep="\n", flush=True)
