"""The web page: files of its own, and plotly's JavaScript from the Python package."""
