"""The web page and the interactive reference: our files, and the JavaScript of plotly and Swagger UI from packages."""
